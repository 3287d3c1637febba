"""What the containers' start is timed with is there to be imported."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from benchmarks.containers import CASES


@pytest.mark.parametrize("step", CASES)
def test_modules_of_a_timed_step_exist(step: str) -> None:
    _, _, modules = CASES[step]
    for module in filter(None, modules.split(", ")):
        assert find_spec(module), module
