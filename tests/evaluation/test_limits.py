"""What checkpoints are held against."""

from __future__ import annotations

from itertools import pairwise

import pytest

from quantlib.checks.recipe import parse_recipe
from quantlib.evaluation.limits import (
    CAPS,
    FACTOR,
    LOOSE_FACTOR,
    Limit,
    cap_of,
    limits_for,
    precision,
    precision_of,
    usual_factor,
)
from quantlib.quantization import QuantizationSection
from quantlib.recipe import Thresholds
from quantlib.schemes import SCHEMES


def section(scheme: str, method: str = "gptq", **options: object) -> QuantizationSection:
    asked = {"method": method, **SCHEMES[scheme], "options": options}
    asked["weights"] = {"group_size": 32, **SCHEMES[scheme]["weights"]}
    asked = parse_recipe({"quantization": asked}).quantization.model_dump()
    return QuantizationSection.model_validate(asked)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("W8A8", "8 bits"),
        ("FP8_BLOCK", "8 bits"),
        ("MXFP8", "8 bits"),
        ("W4A16", "4 bits"),
        ("W4A8", "4 bits"),
        ("NVFP4A16", "4 bits"),
        ("NVFP4", "4 bits and 4-bit inputs"),
        ("MXFP4", "4 bits and 4-bit inputs"),
        ("W2A16", "fewer bits"),
    ],
)
def test_a_scheme_is_as_coarse_as_its_weights_and_inputs(scheme: str, expected: str) -> None:
    assert precision_of(section(scheme).stated_schemes().values()) == expected


def test_the_coarsest_of_several_schemes_decides() -> None:
    schemes = [
        scheme
        for name in ("W8A8", "W2A16", "W4A16")
        for scheme in section(name).stated_schemes().values()
    ]
    assert precision_of(schemes) == "fewer bits"
    assert precision_of(schemes[::2]) == "4 bits"
    assert precision_of([]) == "8 bits"


def test_bits_may_count_scales() -> None:
    assert [precision(bits) for bits in (3.2, 4.25, 8.0, 16)] == [
        "fewer bits",
        "4 bits",
        "8 bits",
        "8 bits",
    ]


@pytest.mark.parametrize(
    ("parameters", "kl"), [(135_000_000, 0.25), (1_200_000_000, 0.15), (70_000_000_000, 0.1)]
)
def test_larger_models_may_lose_less(parameters: int, kl: float) -> None:
    assert cap_of("4 bits", parameters).kl_mean == kl
    limit = limits_for(Thresholds(), "4 bits", parameters, None).kl_mean
    assert limit.value == kl


def test_no_row_allows_less_than_a_finer_scheme_or_a_larger_model() -> None:
    by_precision: dict[str, list[tuple[float, float, float]]] = {}
    for cap in CAPS:
        row = (cap.kl_mean, cap.perplexity_increase, -cap.top1_agreement)
        by_precision.setdefault(cap.precision, []).append(row)
    for rows in by_precision.values():
        assert all(a <= b for one, two in pairwise(rows) for a, b in zip(one, two, strict=True))
    for finer, coarser in pairwise(by_precision.values()):
        assert all(
            a <= b
            for one, two in zip(finer, coarser, strict=True)
            for a, b in zip(one, two, strict=True)
        )


def test_a_recipe_overrides_what_it_names() -> None:
    given = Thresholds(max_perplexity_increase=0.01)
    limits = limits_for(given, "4 bits", 10**8, FACTOR)
    assert limits.perplexity_increase == Limit(0.01, "the recipe's")
    assert limits.kl_mean == Limit(0.25, "for 4 bits, fewer than 1B parameters")
    assert limits.times_rounding is not None
    assert limits.times_rounding.value == FACTOR


def test_a_recipe_that_says_the_divergence_is_asked_for_no_factor_unless_it_says_it() -> None:
    assert limits_for(Thresholds(max_kl_mean=1), "4 bits", 1, FACTOR).times_rounding is None
    both = Thresholds(max_kl_mean=1, max_times_rounding=0.5)
    assert limits_for(both, "4 bits", 1, FACTOR).times_rounding == Limit(0.5, "the recipe's")
    assert limits_for(both, "4 bits", 1, None).times_rounding is None


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (section("W4A16"), FACTOR),
        (section("W4A16", "hqq", importance="none"), LOOSE_FACTOR),
        (section("W4A8"), LOOSE_FACTOR),
        (section("W8A16"), LOOSE_FACTOR),
        (section("W4A16", "minmax"), None),
    ],
)
def test_the_factor_is_that_of_method_and_scheme(
    asked: QuantizationSection, expected: float | None
) -> None:
    assert usual_factor(asked) == expected
