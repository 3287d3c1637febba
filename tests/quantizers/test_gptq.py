"""The default method against a plain reading of docs/methods.md in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from quantlib.quantization import QuantizationSection
from quantlib.quantizers import GPTQQuantizer, InputStatistics, QuantizedInput
from quantlib.schemes import WeightScheme

Array = npt.NDArray[Any]
COLUMNS, GROUP = 128, 32
ROWS = {"gate_proj": 96, "up_proj": 64}

SAME_SCALES = 0.995
SAME_CODES = 0.99
"""A value at a tie, or two ranges that err alike, fall on either side in float32; what is wrong by
one is made up for in the columns that come later."""


@dataclass(frozen=True)
class Expected:
    """Codes ``[rows, columns]``, scales and zero points ``[rows, groups]``."""

    codes: Array
    scales: Array
    zeros: Array


def problem() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Two linears with heavy tails, and the Hessian of correlated channels of unlike sizes."""
    generator = np.random.default_rng(0)
    weights = {
        name: torch.from_numpy(generator.standard_t(4, (rows, COLUMNS)) * 0.02).float()
        for name, rows in ROWS.items()
    }
    mixing = np.eye(COLUMNS) + generator.normal(size=(COLUMNS, COLUMNS)) / COLUMNS**0.5
    sizes = np.exp(generator.normal(size=COLUMNS))
    x = generator.normal(size=(4 * COLUMNS, COLUMNS)) @ mixing * sizes
    return weights, torch.from_numpy(x.T @ x / len(x)).float()


def stored(scales: Array) -> Array:
    """As they are written: in bfloat16."""
    return torch.from_numpy(scales).bfloat16().double().numpy()


def searched(group: Array, importance: Array, symmetric: bool) -> tuple[Array, Array]:
    """The scale and zero point of each row, of 13 shrunken ranges the one with the least error."""
    best = np.full(len(group), np.inf)
    scales, zeros = np.zeros(len(group)), np.zeros(len(group))
    for shrink in 1 - 0.05 * np.arange(13):
        low, high = group.min(1), group.max(1)
        if symmetric:
            scale = stored(np.maximum(-low, high) * shrink / 7.5)
            zero = np.full(len(group), 8.0)
        else:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            scale = stored((high - low) * shrink / 15)
            zero = np.clip(np.round(-low * shrink / scale), 0, 15)
        code = np.clip(np.round(group / scale[:, None]) + zero[:, None], 0, 15)
        change = (code - zero[:, None]) * scale[:, None] - group
        error = (change**2 * importance).sum(1)
        better = error < best
        best = np.where(better, error, best)
        scales, zeros = np.where(better, scale, scales), np.where(better, zero, zeros)
    return scales, zeros


def oracle(weight: Array, hessian: Array, symmetric: bool) -> Expected:
    """Scales searched by the Hessian's diagonal, then columns by importance, errors spread."""
    diagonal = hessian.diagonal()
    found = [
        searched(weight[:, start : start + GROUP], diagonal[start : start + GROUP], symmetric)
        for start in range(0, COLUMNS, GROUP)
    ]
    scales = np.stack([scale for scale, _ in found], 1)
    zeros = np.stack([zero for _, zero in found], 1)
    damped = hessian + 0.1 * diagonal.mean() * np.eye(COLUMNS)
    remaining = list(np.argsort(-diagonal, kind="stable"))
    weight, codes = weight.copy(), np.zeros(weight.shape)
    while remaining:
        inverse = np.linalg.inv(damped[np.ix_(remaining, remaining)])
        column = remaining[0]
        scale, zero = scales[:, column // GROUP], zeros[:, column // GROUP]
        code = np.clip(np.round(weight[:, column] / scale) + zero, 0, 15)
        error = (weight[:, column] - (code - zero) * scale) / inverse[0, 0]
        codes[:, column] = code
        weight[:, remaining] -= np.outer(error, inverse[0])
        remaining = remaining[1:]
    return Expected(codes, scales, zeros)


def found(quantized: QuantizedInput) -> Expected:
    linears = [quantized.linears[name] for name in ROWS]
    zeros = [
        np.full(linear.scales.shape, 8.0)
        if linear.zero_points is None
        else linear.zero_points.double().numpy()
        for linear in linears
    ]
    return Expected(
        np.concatenate([linear.codes.double().numpy() for linear in linears]),
        np.concatenate([linear.scales.double().numpy() for linear in linears]),
        np.concatenate(zeros),
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_default_is_what_the_documentation_says(symmetric: bool) -> None:
    weights, hessian = problem()
    scheme = WeightScheme(bits=4, group_size=GROUP, symmetric=symmetric)
    section = QuantizationSection(weights=scheme)
    assert section.method == "gptq"
    assert section.options == {}
    quantized = GPTQQuantizer(section).quantize(weights, InputStatistics(hessian), torch.bfloat16)
    ours = found(quantized)
    stacked = torch.cat(list(weights.values())).double().numpy()
    expected = oracle(stacked, hessian.double().numpy(), symmetric)
    assert (ours.scales == expected.scales).mean() > SAME_SCALES
    assert (ours.zeros == expected.zeros).mean() > SAME_SCALES
    assert (ours.codes == expected.codes).mean() > SAME_CODES
    assert (quantized.damping, quantized.damping_attempts) == (0.1, 1)
