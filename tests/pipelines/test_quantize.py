"""The quantization pipeline in its compiled form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import _images
from pipelines.expressions import evaluate
from pipelines.ir import Component, Container, Dag, DagInput, Loop, Pipeline, TaskOutput
from pipelines.placeholders import EXECUTOR_INPUT
from pipelines.quantize import DEFAULT_RECIPE, compile_pipeline
from pipelines.reader import load_pipeline
from quantlib.recipe import load_recipe, recipe_from_text
from quantlib.steps import STEP_NAMES


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "deep" / "pipeline.yaml"
    compile_pipeline(path)
    return path


@pytest.fixture(scope="module")
def pipeline(file: Path) -> Pipeline:
    return load_pipeline(file)


def dag_of(component: Component) -> Dag:
    assert isinstance(component.implementation, Dag)
    return component.implementation


def test_steps_in_an_order_that_they_can_run_in(pipeline: Pipeline) -> None:
    assert set(pipeline.steps) == set(STEP_NAMES)
    assert pipeline.steps[:7] == STEP_NAMES[:7]


def test_every_container_runs_its_step(pipeline: Pipeline) -> None:
    for step in STEP_NAMES:
        container = pipeline.components[f"comp-{step}"].implementation
        assert isinstance(container, Container)
        start = (("python",), ("-m",), ("quantlib.steps",), (step,), ("--executor-input",))
        assert container.argv == (*start, (EXECUTOR_INPUT,))
        image = _images.VALIDATE_IMAGE if step == "validate" else _images.QUANTLIB_IMAGE
        assert container.image == image


def test_data_flows_as_designed(pipeline: Pipeline) -> None:
    tasks = dag_of(pipeline.root).tasks
    flow = {
        f"{task.name}.{name}": f"{source.task}.{source.name}"
        for task in tasks.values()
        for name, source in (*task.artifacts.items(), *task.parameters.items())
        if isinstance(source, TaskOutput)
    }
    channel = "pipelinechannel--"
    assert flow == {
        "plan.model": "fetch.model",
        "calibrate.model": "fetch.model",
        "calibrate.plan": "plan.plan",
        "smooth.model": "fetch.model",
        "smooth.calibration": "calibrate.calibration",
        f"for-loop-1.{channel}fetch-model": "fetch.model",
        f"for-loop-1.{channel}calibrate-calibration": "calibrate.calibration",
        f"for-loop-1.{channel}smooth-smoothing": "smooth.smoothing",
        f"for-loop-1.{channel}plan-ranges": "plan.ranges",
        "merge.model": "fetch.model",
        "merge.quantized": f"for-loop-1.{channel}quantize-quantized",
        "validate.model": "fetch.model",
        "validate.checkpoint": "merge.checkpoint",
        f"condition-branches-2.{channel}merge-checkpoint": "merge.checkpoint",
        f"condition-branches-2.{channel}validate-validation": "validate.validation",
        f"condition-branches-2.{channel}validate-verdict": "validate.verdict",
        f"condition-branches-2.{channel}validate-reason": "validate.reason",
    }
    given = {
        (task.name, name): source.name
        for task in tasks.values()
        for name, source in task.parameters.items()
        if isinstance(source, DagInput)
    }
    assert all(name.removeprefix(channel) == source for (_, name), source in given.items())


def test_loop_runs_over_the_ranges(pipeline: Pipeline) -> None:
    task = dag_of(pipeline.root).tasks["for-loop-1"]
    items = "pipelinechannel--plan-ranges"
    assert task.loop == Loop(items=items, item_input=f"{items}-loop-item", parallelism=0)
    quantize = dag_of(pipeline.components[task.component]).tasks["quantize"]
    assert quantize.parameters["block_range"] == DagInput(f"{items}-loop-item")
    assert pipeline.components["comp-merge"].inputs.artifacts["quantized"].is_list


@pytest.mark.parametrize(
    ("verdict", "taken"), [("passed", "publish"), ("failed", "gate"), ("", "gate")]
)
def test_gate_stands_before_publish(pipeline: Pipeline, verdict: str, taken: str) -> None:
    branches = dag_of(pipeline.components["comp-condition-branches-2"]).tasks
    parameters = {"pipelinechannel--validate-verdict": verdict}
    steps = [
        step
        for task in branches.values()
        if task.condition and evaluate(task.condition, parameters)
        for step in dag_of(pipeline.components[task.component]).tasks
    ]
    assert steps == [taken]
    assert len(branches) == 2


def test_caching_is_off_everywhere(file: Path) -> None:
    document = yaml.safe_load(file.read_text())
    components = [document["root"], *document["components"].values()]
    tasks: dict[str, Any] = {}
    for component in components:
        tasks |= component.get("dag", {}).get("tasks", {})
    assert {name for name in tasks if tasks[name].get("cachingOptions") == {}} == set(STEP_NAMES)


def test_parameters_and_their_defaults(pipeline: Pipeline) -> None:
    parameters = pipeline.root.inputs.parameters
    assert {name: spec.default for name, spec in parameters.items()} == {
        "store": None,
        "recipe": DEFAULT_RECIPE,
        "source": "",
        "num_ranges": 0,
        "destination": "",
        "device": "auto",
    }
    assert parameters["num_ranges"].type == "NUMBER_INTEGER"


def test_default_recipe_is_the_shipped_one_in_a_line() -> None:
    assert "\n" not in DEFAULT_RECIPE
    assert recipe_from_text(DEFAULT_RECIPE) == load_recipe("gptq")


def test_images_can_be_set_when_compiling(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    environment = os.environ | {
        "QUANTLIB_IMAGE": "mine/quantlib@sha256:1",
        "QUANTLIB_VALIDATE_IMAGE": "mine/validate:2",
    }
    command = [sys.executable, "-m", "pipelines", "compile", "--output", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{path}\n")
    images = {
        component.implementation.image
        for component in load_pipeline(path).components.values()
        if isinstance(component.implementation, Container)
    }
    assert images == {"mine/quantlib@sha256:1", "mine/validate:2"}
