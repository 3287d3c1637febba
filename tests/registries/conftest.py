"""What was published of a made-up run, as registries are told of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quantlib.registries.entry import Entry


@pytest.fixture
def make_entry() -> Callable[..., Entry]:
    """Makes an entry, with changes."""

    def make(**changes: object) -> Entry:
        given = {
            "name": "tiny",
            "release": 3,
            "uri": "oci://registry.example.org/tiny@sha256:" + "1" * 64,
            "digest": "sha256:" + "2" * 64,
            "manifest": "sha256:" + "3" * 64,
            "about": {"format": "gptq", "recipe": "sha256:" + "4" * 64, "verdict": "passed"},
            "figures": {"kl_mean": 0.108, "perplexity_quantized": 16.7655},
            "settings": {f"field.{number}": str(number) for number in range(130)},
            "page": b"<html>the report</html>",
        }
        return Entry(**given | changes)  # type: ignore[arg-type]

    return make


@pytest.fixture
def entry(make_entry: Callable[..., Entry]) -> Entry:
    return make_entry()
