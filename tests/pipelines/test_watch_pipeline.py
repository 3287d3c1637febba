"""The pipeline of one look at a model, with the quantization pipeline in it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from argo_interpreter import Workflow
from recipes import QUICK
from rich.console import Console

from components._images import named_images
from pipelines.argo import write_workflow_template
from pipelines.compiling import CompileOptions, compile_to
from pipelines.ir import Constant, Container, Dag, DagInput, Pipeline, TaskOutput
from pipelines.local import RunResult, run_pipeline
from pipelines.process import ProcessRunner
from pipelines.reader import load_pipeline
from pipelines.scheduler import State
from quantlib.report.manifest import verify_published
from quantlib.steps import ALL_STEP_NAMES
from quantlib.store import open_store


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "watch.yaml"
    compile_to(path, CompileOptions(), "watch")
    return path


@pytest.fixture(scope="module")
def pipeline(file: Path) -> Pipeline:
    return load_pipeline(file)


def dag(pipeline: Pipeline, component: str = "") -> Dag:
    found = pipeline.components[component] if component else pipeline.root
    assert isinstance(found.implementation, Dag)
    return found.implementation


def test_one_step_decides_about_all_others(pipeline: Pipeline) -> None:
    assert pipeline.steps[0] == "resolve"
    assert set(pipeline.steps) == set(ALL_STEP_NAMES)
    resolve, condition = dag(pipeline).tasks["resolve"], dag(pipeline).tasks["condition-1"]
    assert set(dag(pipeline).tasks) == {"resolve", "condition-1"}
    assert resolve.condition is None
    assert condition.dependencies == ("resolve",)
    assert resolve.parameters["images"] == Constant(list(named_images().of_quantization))


def test_the_quantization_is_given_what_was_resolved(pipeline: Pipeline) -> None:
    condition = dag(pipeline).tasks["condition-1"]
    (nested,) = dag(pipeline, condition.component).tasks.values()
    assert nested.name == "quantize-release"
    channels = {
        name: condition.parameters[source.name]
        for name, source in nested.parameters.items()
        if isinstance(source, DagInput)
    }
    assert channels.keys() == pipeline.components[nested.component].inputs.parameters.keys()
    assert channels["source"] == TaskOutput("resolve", "release")
    assert channels["job"] == TaskOutput("resolve", "job")
    others = channels.keys() - {"source", "job"}
    assert all(channels[name] == DagInput(name) for name in others)


def test_a_look_is_one_small_pod_that_is_never_cached(file: Path, pipeline: Pipeline) -> None:
    container = pipeline.components["comp-resolve"].implementation
    assert isinstance(container, Container)
    assert container.image == named_images().watch
    assert container.resources.memory_limit == ("1Gi",)
    assert [volume.size for volume in container.kubernetes.empty_dirs] == ["1Gi"]
    secrets = [source.name for source in container.kubernetes.secrets]
    assert secrets == ["quantlib-s3", "quantlib-hub"]
    # A watcher's pod may start runs; this one may not.
    assert container.kubernetes.labels["quantlib.io/step"] == "resolve"
    document = next(yaml.safe_load_all(file.read_text()))
    assert document["root"]["dag"]["tasks"]["resolve"]["cachingOptions"] == {}


class Ticks:
    """A schedule's runs of the compiled pipeline, on one model."""

    def __init__(self, file: Path, folder: Path, model: Path) -> None:
        self.file, self.folder = file, folder
        self.model = Path(shutil.copytree(model, folder / "model"))
        self.parameters: dict[str, Any] = {
            "recipe": json.dumps(QUICK),
            "source": str(self.model),
            "store": str(folder / "store"),
            "destination": str(folder / "published"),
            "device": "cpu",
        }
        self._count = iter(range(9))

    def tick(self) -> RunResult:
        """Runs it once more."""
        folder = self.folder / f"run-{next(self._count)}"
        return run_pipeline(
            self.file,
            self.parameters | {"gpu": "cpu", "parallel": 2},
            folder,
            ProcessRunner(),
            2,
            Console(file=io.StringIO()),
        )

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
def test_a_release_is_quantized_by_the_first_tick_and_skipped_by_the_next(
    file: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    ticks = Ticks(file, tmp_path, tiny_llama)
    first = ticks.tick()
    assert first.exit_code == 0, first.failure and first.failure.error
    expected = dict.fromkeys(ALL_STEP_NAMES, State.SUCCEEDED) | {"gate": State.SKIPPED}
    assert states(first) == expected
    assert len(list(ticks.published())) == 1
    job = first.outputs["resolve"].parameters["job"]
    assert ticks.jobs() == {job.removeprefix("sha256:")}

    second = ticks.tick()
    assert second.exit_code == 0
    assert second.outputs["resolve"].parameters == first.outputs["resolve"].parameters | {
        "needed": "no"
    }
    assert states(second) == dict.fromkeys(ALL_STEP_NAMES, State.SKIPPED) | {
        "resolve": State.SUCCEEDED
    }

    ticks.release(0.25)
    third = ticks.tick()
    assert third.exit_code == 0
    assert states(third) == expected
    assert len(ticks.jobs()) == 2


@pytest.mark.slow
def test_argo_runs_the_same(file: Path, tiny_llama: Path, tmp_path: Path) -> None:
    ticks = Ticks(file, tmp_path, tiny_llama)
    write_workflow_template(load_pipeline(file), tmp_path / "workflow.yaml")
    document = yaml.safe_load((tmp_path / "workflow.yaml").read_text())
    first = Workflow(document, tmp_path / "first")
    assert first.run(**ticks.parameters) == "Succeeded", first.pods[-2].log
    assert first.ran()[0] == "resolve"
    assert first.ran()[-2:] == ["publish", "report-outcome"]
    assert len(list(ticks.published())) == 1

    second = Workflow(document, tmp_path / "second")
    assert second.run(**ticks.parameters) == "Succeeded"
    assert second.ran() == ["resolve", "report-outcome"]
    # A tick with nothing new pulls one image.
    images = {pod.template["container"]["image"] for pod in second.pods}
    assert images == {named_images().watch}
