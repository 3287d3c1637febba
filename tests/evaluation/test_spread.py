"""How a divergence is spread over a text."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from quantlib.evaluation.spread import spread_of
from quantlib.text.windows import Windows

TOKENIZER = Tokenizer(models.WordLevel({f"w{i}": i for i in range(100)}, unk_token="w0"))
TOKENIZER.decoder = decoders.Fuse()
TOKENS = np.arange(1, 61).reshape(2, 30)
WINDOWS = Windows(TOKENS, "text", False, "sha256:1", {})


def test_means_quantiles_and_the_worst_places() -> None:
    kl = np.full((2, 29), 0.1, np.float32)
    kl[1, 4], kl[0, 20] = 5.0, 3.0
    found = spread_of(kl, WINDOWS, TOKENIZER)
    assert found["windows"] == [
        pytest.approx((28 * 0.1 + 3) / 29),
        pytest.approx((28 * 0.1 + 5) / 29),
    ]
    assert found["tokens"]["0.5"] == pytest.approx(0.1)
    assert found["tokens"]["1"] == 5.0
    first, second, *_ = found["worst"]
    assert (first["window"], first["position"], first["kl"]) == (1, 5, 5.0)
    assert (first["text"], first["token"]) == ("w31w32w33w34w35", "w36")
    assert (second["window"], second["position"]) == (0, 21)
    assert len(found["worst"]) == 8


def test_what_opens_a_document_is_no_place() -> None:
    tokens = TOKENS.copy()
    tokens[:, 0] = tokens[:, 10] = 99
    opened = Windows(tokens, "text", False, "sha256:1", {}, ("w99",))
    kl = np.zeros((2, 29), np.float32)
    kl[:, 9] = 7.0
    found = spread_of(kl, opened, TOKENIZER)
    assert found["tokens"]["1"] == 0
    assert all(place["kl"] == 0 for place in found["worst"])
