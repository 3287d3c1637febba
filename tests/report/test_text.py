"""Numbers as text."""

import math

import pytest

from quantlib.report import text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (16.7655, "16.77"),
        (0.106, "0.1060"),
        (9.99996, "10.00"),
        (1234.5678, "1235"),
        (0, "0"),
        (None, "\N{EN DASH}"),
        (1.2e-7, "1.200 \N{MULTIPLICATION SIGN} 10⁻⁷"),
        (2.5e9, "2.500 \N{MULTIPLICATION SIGN} 10⁹"),
        (math.inf, "∞"),
        (math.nan, "not a number"),
    ],
)
def test_significant_keeps_four_digits(value: float | None, expected: str) -> None:
    assert text.significant(value) == expected


def test_changes_are_signed() -> None:
    assert text.change(0.09) == "+9.0%"
    assert text.change(-0.025) == "\N{MINUS SIGN}2.5%"
    assert text.percent(0.8381) == "83.8%"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (269_060_552, "256.6 MiB"), (3 * 1024**4, "3.0 TiB")],
)
def test_sizes_use_the_largest_fitting_unit(value: int, expected: str) -> None:
    assert text.size(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (61.24, "61.2 s"),
        (99.99, "1 min 40 s"),
        (120, "2 min"),
        (3900, "1 h 5 min"),
        (None, "\N{EN DASH}"),
    ],
)
def test_durations(seconds: float | None, expected: str) -> None:
    assert text.duration(seconds) == expected


def test_counts_in_a_mapping_are_words() -> None:
    assert text.counted({"F32": 211, "Q4_K": 61}) == "211 F32, 61 Q4_K"
    assert text.counted("folder") == "folder"


def test_a_share_is_never_rounded_to_nothing() -> None:
    assert [text.percent(value) for value in (0.0001, -0.047, 0.0, 0.8381)] == [
        "0.01%",
        "\N{MINUS SIGN}4.7%",
        "0.0%",
        "83.8%",
    ]
