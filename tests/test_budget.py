"""What a search may spend, as people write it."""

from __future__ import annotations

import pytest

from quantlib.budget import Budget, parse_budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("4.5bits", Budget("bits", 4.5)),
        ("4.5 bits", Budget("bits", 4.5)),
        ("4bit", Budget("bits", 4)),
        ("6.2GB", Budget("bytes", 6.2e9)),
        ("800mb", Budget("bytes", 800e6)),
        ("2GiB", Budget("bytes", 2 * 1024**3)),
        ("kl=0.02", Budget("kl", 0.02)),
        ("KL = .5", Budget("kl", 0.5)),
    ],
)
def test_what_is_read(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["4.5", "bits", "", "4.5 bytes", "-1bits", "kl 0.1", "6.2 gbits"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"4\.5bits, 6\.2GB, kl=0\.02"):
        parse_budget(text)


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        parse_budget("0bits")


def test_how_it_is_shown() -> None:
    shown = [str(parse_budget(text)) for text in ("4.50bits", "6.2GB", "812MB", "kl=0.02")]
    assert shown == ["4.5 bits", "6.2 GB", "812 MB", "KL 0.02"]
