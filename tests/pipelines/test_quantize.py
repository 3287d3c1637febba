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
from pipelines.compiling import CompileOptions, compile_to
from pipelines.expressions import evaluate
from pipelines.ir import Component, Container, Dag, DagInput, Loop, Pipeline, TaskOutput
from pipelines.placeholders import EXECUTOR_INPUT, Placeholder
from pipelines.quantize import DEFAULT_RECIPE
from pipelines.reader import load_pipeline
from quantlib.checks.recipe import load_recipe, recipe_from_text
from quantlib.runtime.code_version import code_version
from quantlib.steps import STEP_NAMES


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "deep" / "pipeline.yaml"
    compile_to(path, CompileOptions())
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
        assert container.image == _images.named_images().of(step)


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
        "plan.texts": "fetch.texts",
        "calibrate.model": "fetch.model",
        "calibrate.plan": "plan.plan",
        "smooth.model": "fetch.model",
        "smooth.calibration": "calibrate.calibration",
        f"for-loop-1.{channel}fetch-model": "fetch.model",
        f"for-loop-1.{channel}calibrate-calibration": "calibrate.calibration",
        f"for-loop-1.{channel}smooth-smoothing": "smooth.smoothing",
        f"for-loop-1.{channel}plan-ranges": "plan.ranges",
        f"for-loop-1.{channel}plan-quantize_memory": "plan.quantize_memory",
        f"for-loop-1.{channel}plan-quantize_cpus": "plan.quantize_cpus",
        f"for-loop-1.{channel}plan-quantize_gpus": "plan.quantize_gpus",
        "merge.model": "fetch.model",
        "merge.quantized": f"for-loop-1.{channel}quantize-quantized",
        "validate.model": "fetch.model",
        "validate.plan": "plan.plan",
        "validate.checkpoint": "merge.checkpoint",
        "validate.gpus": "plan.validate_gpus",
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
    assert task.loop == Loop(items=items, item_input=f"{items}-loop-item", parallelism=16)
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
    document = next(yaml.safe_load_all(file.read_text()))
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
        "gpu": "h100-80g",
        "parallel": 16,
        "job": "",
    }
    assert parameters["device"].literals == ("auto", "cpu", "cuda")
    assert {"h100-80g", "cpu"} <= set(parameters["gpu"].literals)
    assert parameters["num_ranges"].type == "NUMBER_INTEGER"


def test_default_recipe_is_the_shipped_one_in_a_line() -> None:
    assert "\n" not in DEFAULT_RECIPE
    assert recipe_from_text(DEFAULT_RECIPE) == load_recipe("gptq")


def test_images_can_be_set_when_compiling(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    environment = os.environ | {
        "QUANTLIB_IMAGE": f"mine/quantlib@sha256:{'1' * 64}",
        "QUANTLIB_VALIDATE_IMAGE": "mine/validate:2.0.0",
    }
    command = [sys.executable, "-m", "pipelines", "compile", "--output", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{path}\n")
    images = {container.image for container in containers_of(load_pipeline(path)).values()}
    assert images == {f"mine/quantlib@sha256:{'1' * 64}", "mine/validate:2.0.0"}


def containers_of(pipeline: Pipeline) -> dict[str, Container]:
    return {
        name.removeprefix("comp-"): component.implementation
        for name, component in pipeline.components.items()
        if isinstance(component.implementation, Container)
    }


def test_steps_that_compute_ask_for_what_the_plan_says(pipeline: Pipeline) -> None:
    containers = containers_of(pipeline)
    for step in ("calibrate", "quantize", "validate"):
        resources = containers[step].resources
        planned = {"memory": resources.memory_limit, "cpus": resources.cpu_limit}
        planned["gpus"] = resources.accelerator_count
        for what, template in planned.items():
            (limit,) = template
            assert isinstance(limit, Placeholder)
            assert limit.name == f"pipelinechannel--plan-{step}_{what}"
        assert resources.memory_request == resources.memory_limit
        assert resources.cpu_request == resources.cpu_limit
        assert resources.accelerator_type == ("nvidia.com/gpu",)
        assert containers[step].kubernetes.tolerations
    for step in ("fetch", "plan", "smooth", "merge", "gate", "publish"):
        assert containers[step].resources.accelerator_type == ()
        assert containers[step].kubernetes.tolerations == ()
        (memory,) = containers[step].resources.memory_limit
        assert str(memory).endswith("Gi")


def test_every_pod_can_run_where_pods_are_restricted(pipeline: Pipeline) -> None:
    for step, container in containers_of(pipeline).items():
        config = container.kubernetes
        assert (config.user, config.group, config.non_root) == (10001, 10001, True)
        assert config.labels["quantlib.io/step"] == step
        assert config.timeout >= 60
        assert "/scratch" in [volume.path for volume in config.empty_dirs]


def test_secrets_are_named_and_never_held(file: Path, pipeline: Pipeline) -> None:
    for step, container in containers_of(pipeline).items():
        names = [source.name for source in container.kubernetes.secrets]
        assert names == ["quantlib-s3", *(["quantlib-hub"] if step == "fetch" else [])]
        assert all(source.optional for source in container.kubernetes.secrets)
        assert set(container.environment) == {"QUANTLIB_CODE", "QUANTLIB_IMAGE"}
        assert container.environment["QUANTLIB_IMAGE"] == container.image


def test_vllm_has_shared_memory(pipeline: Pipeline) -> None:
    for step, container in containers_of(pipeline).items():
        shared = [v for v in container.kubernetes.empty_dirs if v.path == "/dev/shm"]
        assert [volume.medium for volume in shared] == (["Memory"] if step == "validate" else [])


def test_a_step_that_fails_after_a_day_is_still_retried(pipeline: Pipeline) -> None:
    quantize = dag_of(pipeline.components["comp-for-loop-1"]).tasks["quantize"]
    assert quantize.retry.count == 3
    assert quantize.retry.limit > containers_of(pipeline)["quantize"].kubernetes.timeout
    branches = dag_of(pipeline.components["comp-condition-branches-2"]).tasks.values()
    gates = [dag_of(pipeline.components[branch.component]).tasks.get("gate") for branch in branches]
    assert [gate.retry.count for gate in gates if gate] == [0]


@pytest.mark.parametrize(
    ("name", "cluster", "which"),
    [("gpu", "gpu", "quantize"), ("local", "local", "quantize"), ("watch", "gpu", "watch")],
)
def test_the_compiled_pipeline_is_what_it_was(
    name: str, cluster: str, which: str, tmp_path: Path
) -> None:
    """Compares with the file in golden/; UPDATE_GOLDEN=1 writes it anew after a change."""
    path = tmp_path / "p.yaml"
    compile_to(path, CompileOptions(cluster), which)
    text = path.read_text().replace(code_version(), "CODE")
    text = text.replace(code_version().replace("+", "-"), "CODE")
    golden = Path(__file__).parent / "golden" / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert yaml_documents(text) == yaml_documents(golden.read_text())


def yaml_documents(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))
