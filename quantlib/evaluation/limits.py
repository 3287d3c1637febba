"""How much a checkpoint may lose, by how it is represented and how large the model is.

A large model loses less than a small one in the same scheme, and 8 bits cost a tenth of 4: one
limit for all lets through what anybody would refuse. Where each number comes from is in
``docs/gate.md``, whose table is written from the one here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from quantlib.checks.scheme import needs_hidden_states
from quantlib.quantization import QuantizationSection
from quantlib.recipe import Thresholds
from quantlib.schemes import ACTIVATIONS, EXACT_INPUTS, LinearScheme

Precision = Literal["8 bits", "4 bits", "4 bits and 4-bit inputs", "fewer bits"]

ROUNDING = "minmax"
"""The method that the others are held against: rounding to nearest."""

FACTOR = 0.75
"""Of plain rounding's divergence, for a method that looks at text where weights alone are rounded,
to fewer than 8 bits: there it has less than that, or is not worth its time."""

LOOSE_FACTOR = 1.25
"""For any other method and scheme: what weights cost at 8 bits drowns in what inputs cost, and a
method that looks at no text can do little better than rounding."""

LEAST_ROUNDING = 0.003
"""Nats that plain rounding is taken to cost at least: below that, factors compare noise."""


@dataclass(frozen=True)
class Limit:
    """What a figure is held against.

    Attributes:
        value: The most that is allowed, or the least.
        source: Where it comes from, in words.
    """

    value: float
    source: str


@dataclass(frozen=True)
class Limits:
    """What a checkpoint is held against.

    Attributes:
        perplexity_increase: Relative.
        kl_mean: In nats.
        top1_agreement: The least.
        times_rounding: Of the divergence that plain rounding gives; None where that is not looked
            at.
        undercalibrated_experts: Share of the experts.
    """

    perplexity_increase: Limit
    kl_mean: Limit
    top1_agreement: Limit
    times_rounding: Limit | None
    undercalibrated_experts: Limit


@dataclass(frozen=True)
class Cap:
    """A row of the table.

    Attributes:
        precision: Of the coarsest linears.
        parameters: The model has at least so many.
        kl_mean: Nats, at most.
        perplexity_increase: Relative, at most.
        top1_agreement: At least.
    """

    precision: Precision
    parameters: int
    kl_mean: float
    perplexity_increase: float
    top1_agreement: float


CAPS = (
    Cap("8 bits", 3_000_000_000, 0.02, 0.02, 0.95),
    Cap("8 bits", 1_000_000_000, 0.03, 0.03, 0.93),
    Cap("8 bits", 0, 0.05, 0.05, 0.9),
    Cap("4 bits", 3_000_000_000, 0.1, 0.12, 0.88),
    Cap("4 bits", 1_000_000_000, 0.15, 0.15, 0.84),
    Cap("4 bits", 0, 0.25, 0.25, 0.72),
    Cap("4 bits and 4-bit inputs", 3_000_000_000, 0.15, 0.15, 0.85),
    Cap("4 bits and 4-bit inputs", 1_000_000_000, 0.2, 0.2, 0.8),
    Cap("4 bits and 4-bit inputs", 0, 0.4, 0.4, 0.65),
    Cap("fewer bits", 3_000_000_000, 0.5, 0.6, 0.7),
    Cap("fewer bits", 1_000_000_000, 0.8, 1.2, 0.6),
    Cap("fewer bits", 0, 1.5, 4.0, 0.45),
)
"""From coarse to fine nothing is allowed that was allowed; from large to small models more is."""

_ORDER: tuple[Precision, ...] = ("8 bits", "4 bits", "4 bits and 4-bit inputs", "fewer bits")


def precision_of(schemes: Iterable[LinearScheme]) -> Precision:
    """How coarse the coarsest of some schemes is; of none, as fine as 8 bits are."""
    found = (precision(scheme.weights.bits, _input_bits(scheme)) for scheme in schemes)
    return max(found, key=_ORDER.index, default="8 bits")


def precision(weight_bits: float, input_bits: int = 16) -> Precision:
    """How coarse a representation is.

    Args:
        weight_bits: Of a weight, without its share of a scale or with it.
        input_bits: Of what the weights are multiplied with.
    """
    if weight_bits < 4:
        return "fewer bits"
    if input_bits < 8:
        return "4 bits and 4-bit inputs"
    return "4 bits" if weight_bits < 8 else "8 bits"


def cap_of(precision: Precision, parameters: int) -> Cap:
    """The row for a model.

    Args:
        precision: How coarse its coarsest linears are.
        parameters: How many it has.
    """
    rows = (cap for cap in CAPS if cap.precision == precision)
    return next(cap for cap in rows if parameters >= cap.parameters)


def _input_bits(scheme: LinearScheme) -> int:
    exact = scheme.activations == EXACT_INPUTS
    return 16 if exact else int(ACTIVATIONS[scheme.activations].row["bits"])


def limits_for(
    thresholds: Thresholds, precision: Precision, parameters: int, factor: float | None
) -> Limits:
    """What a checkpoint is held against: what the recipe says, else what is usual.

    A recipe that says how much divergence is allowed is not asked for less than that by a factor of
    plain rounding's, unless it gives the factor too.

    Args:
        thresholds: The recipe's.
        precision: How coarse the coarsest linears are.
        parameters: Of the original.
        factor: What :func:`usual_factor` gives.
    """
    cap = cap_of(precision, parameters)
    usual = f"for {precision}, {size_in_words(cap.parameters)}"

    def limit(given: float | None, default: float) -> Limit:
        return Limit(default, usual) if given is None else Limit(given, "the recipe's")

    times = None
    if factor is not None and thresholds.max_times_rounding is not None:
        times = Limit(thresholds.max_times_rounding, "the recipe's")
    elif factor is not None and thresholds.max_kl_mean is None:
        times = Limit(factor, "for the method and scheme")
    return Limits(
        perplexity_increase=limit(thresholds.max_perplexity_increase, cap.perplexity_increase),
        kl_mean=limit(thresholds.max_kl_mean, cap.kl_mean),
        top1_agreement=limit(thresholds.min_top1_agreement, cap.top1_agreement),
        times_rounding=times,
        undercalibrated_experts=Limit(thresholds.max_undercalibrated_experts, "the recipe's"),
    )


def usual_factor(section: QuantizationSection) -> float | None:
    """What of plain rounding's divergence is allowed; None for plain rounding itself."""
    if section.method == ROUNDING:
        return None
    schemes = section.stated_schemes().values()
    coarse = any(scheme.weights.bits < 8 for scheme in schemes)
    exact = all(scheme.activations == EXACT_INPUTS for scheme in schemes)
    return FACTOR if coarse and exact and needs_hidden_states(section) else LOOSE_FACTOR


def size_in_words(parameters: int) -> str:
    """``3B parameters and more``, or ``fewer than 1B parameters`` of the last row."""
    if parameters:
        return f"{parameters // 10**9}B parameters and more"
    least = min(cap.parameters for cap in CAPS if cap.parameters)
    return f"fewer than {least // 10**9}B parameters"
