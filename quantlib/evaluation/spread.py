"""How a divergence is spread over a text: the mean is that of a few tokens, mostly."""

from __future__ import annotations

from typing import Any

import numpy as np
from tokenizers import Tokenizer

from quantlib.text.windows import Windows

QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
_WORST = 8
_CONTEXT = 16
"""Tokens that are shown before a position."""


def spread_of(kl: np.ndarray, windows: Windows, tokenizer: Tokenizer) -> dict[str, Any]:
    """The spread as it stands in the evaluation.

    Args:
        kl: Divergences in nats, float32 ``[windows, positions]``.
        windows: What was read.
        tokenizer: Of the model, for the words of the worst positions.
    """
    predicted = windows.predicted
    counted = kl.astype(np.float64)
    found = np.where(predicted, counted, -np.inf)
    order = np.argsort(-found, axis=None, kind="stable")[:_WORST]
    return {
        "windows": [float(each) for each in counted.mean(axis=1, where=predicted)],
        "tokens": {f"{at:g}": float(np.quantile(counted[predicted], at)) for at in QUANTILES},
        "worst": [
            _position(windows, tokenizer, window, position, found[window, position])
            for window, position in zip(*np.unravel_index(order, kl.shape), strict=True)
            if predicted[window, position]
        ],
    }


def _position(
    windows: Windows, tokenizer: Tokenizer, window: int, position: int, kl: float
) -> dict[str, Any]:
    after = int(position) + 1
    tokens = windows.tokens[window].tolist()
    return {
        "window": int(window),
        "position": after,
        "text": tokenizer.decode(tokens[max(0, after - _CONTEXT) : after]),
        "token": tokenizer.decode([tokens[after]]),
        "kl": float(kl),
    }
