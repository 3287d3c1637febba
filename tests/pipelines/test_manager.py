"""The manager calls the steps as functions, in the order of the table and with what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recipes import QUICK

from pipelines.graph import QUANTIZE, Output
from pipelines.interface import interface_of
from quantlib import manager
from quantlib.checks.recipe import parse_recipe
from quantlib.manager import QuantizationManager
from quantlib.store import LocalStore

RANGES = ("0:2", "2:4", "4:5")
CALLED = [step for step in QUANTIZE.steps if step.name not in ("gate", "publish")]
"""The gate is the command's exit code, and publishing the workflow's business alone."""


@dataclass(frozen=True)
class Made:
    """A receipt of a step."""

    step: str
    facts: dict[str, Any] = field(default_factory=lambda: {"ranges": RANGES}, compare=False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[Any]]]:
    """The calls of steps, with the arguments of each; none does anything."""
    called: list[tuple[str, list[Any]]] = []

    def stand_in(step: str) -> Callable[..., Made]:
        def call(*given: Any, **_: Any) -> Made:
            lists = [each if isinstance(each, list) else [each] for each in given]
            called.append((step, [each for found in lists for each in found]))
            return Made(step)

        return call

    for step in CALLED:
        monkeypatch.setattr(manager, step.name, stand_in(step.name))
    texts = SimpleNamespace(inputs=True, step="fetch")  # which the fetch step brings too
    monkeypatch.setattr(manager, "bring_texts", lambda *_, **__: texts)
    monkeypatch.setattr(manager, "open_receipt", lambda *_: (None, None))
    monkeypatch.setattr(manager, "settle", lambda asked, _: SimpleNamespace(recipe=asked))
    for name in ("read_evaluation", "build_report"):
        monkeypatch.setattr(manager, name, lambda *_, **__: None)
    for name in ("_require_shareable", "_say_what_is_judged"):
        monkeypatch.setattr(QuantizationManager, name, lambda *_: None)
    return called


def test_the_manager_goes_by_the_table(calls: list[tuple[str, list[Any]]], tmp_path: Path) -> None:
    made = QuantizationManager(parse_recipe(QUICK), "model", LocalStore(tmp_path))
    made.quantize(validated=True)
    expected = [
        step.name for step in CALLED for _ in (RANGES if step.each is not None else ("once",))
    ]
    assert [name for name, _ in calls] == expected
    for name, given in calls:
        inputs = QUANTIZE.step(name).inputs
        sources = [inputs[artifact] for artifact in interface_of(name).artifacts]
        taken = {source.step for source in sources if isinstance(source, Output)}
        assert {each.step for each in given if hasattr(each, "step")} == taken, name
    ranges = [each for name, given in calls if name == "quantize" for each in given]
    assert [each for each in ranges if each in RANGES] == list(RANGES)
    (merged,) = (given for name, given in calls if name == "merge")
    assert merged.count(Made("quantize")) == len(RANGES)
