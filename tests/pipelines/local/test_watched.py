"""A schedule's runs of the workflow that watches a model."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from in_process import InProcess
from recipes import QUICK
from rich.console import Console

from pipelines.compiling import CompileOptions, prepare
from pipelines.graph import WATCH
from pipelines.local.processes import ProcessRunner, Runner
from pipelines.local.run import RunResult, run_graph
from pipelines.local.scheduler import Execution
from pipelines.local.state import State
from quantlib.checks.recipe_choice import AS_IN_RECIPE
from quantlib.report.manifest import verify_published
from quantlib.steps import STEP_NAMES
from quantlib.store import open_store


class Ticks:
    """Runs of the workflow on one model."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = Path(shutil.copytree(model, folder / "model"))
        self.settings: dict[str, Any] = {
            "recipe": json.dumps(QUICK),
            "scheme": AS_IN_RECIPE,
            "recipe_changes": {},
            "model": str(self.model),
            "num_ranges": 0,
            "store": str(folder / "store"),
            "publish_to": str(folder / "published"),
            "device": "cpu",
            "gpu": "cpu",
        }
        self._count = iter(range(9))

    def tick(self, runner: Runner) -> RunResult:
        """Runs it once more."""
        compilation = prepare(WATCH, CompileOptions("local"))
        execution = Execution(
            self.folder / f"run-{next(self._count)}",
            runner,
            2,
            compilation.profile.retries,
            compilation.images,
        )
        constants = replace(compilation.constants, scratch="")
        return run_graph(WATCH, self.settings, constants, execution, Console(file=io.StringIO()))

    def release(self, temperature: float) -> None:
        """Changes the model."""
        path = self.model / "generation_config.json"
        path.write_text(json.dumps({"temperature": temperature}))

    def published(self) -> Iterator[Path]:
        """The published folders."""
        for manifest in (self.folder / "published").glob("*/*/manifest.json"):
            verify_published(open_store(str(manifest.parent)))
            yield manifest.parent

    def jobs(self) -> set[str]:
        """Digests of the jobs that are done."""
        return {path.stem for path in (self.folder / "published" / "jobs").iterdir()}


def states(result: RunResult) -> dict[str, State]:
    return {run.step: run.state for run in result.runs}


@pytest.mark.slow
@pytest.mark.usefixtures("shared_engines")
def test_a_release_is_quantized_by_the_first_tick_and_skipped_by_the_next(
    tiny_llama: Path, tmp_path: Path
) -> None:
    ticks = Ticks(tmp_path, tiny_llama)
    first = ticks.tick(InProcess())
    assert first.exit_code == 0, first.failure and first.failure.error
    expected = dict.fromkeys(("resolve", *STEP_NAMES), State.SUCCEEDED)
    assert states(first) == expected
    assert len(list(ticks.published())) == 1
    job = first.outputs["resolve"].parameters["job"]
    assert ticks.jobs() == {job.removeprefix("sha256:")}

    second = ticks.tick(ProcessRunner())
    assert second.exit_code == 0
    assert second.outputs["resolve"].parameters == first.outputs["resolve"].parameters | {
        "needed": "no"
    }
    assert states(second) == dict.fromkeys(("resolve", *STEP_NAMES), State.SKIPPED) | {
        "resolve": State.SUCCEEDED
    }

    ticks.release(0.25)
    third = ticks.tick(InProcess())
    assert third.exit_code == 0
    assert states(third) == expected
    assert len(ticks.jobs()) == 2
