"""The workflows as pipelines of Kubeflow, in their compiled form."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from shallow import shallowly

from components._images import named_images
from pipelines.compiling import CompileOptions, prepare
from pipelines.graph import GRAPHS, QUANTIZE, WATCH, Graph
from pipelines.kubeflow.compiling import compile_pipeline, write_kubernetes_manifests
from quantlib.checks.recipe import load_recipe
from quantlib.runtime.code_version import code_version
from quantlib.steps import STEP_NAMES

GOLDEN = Path(__file__).parents[1] / "golden"


class Compiled:
    """A compiled pipeline."""

    def __init__(self, file: Path, graph: Graph = QUANTIZE, **options: Any) -> None:
        shallowly(compile_pipeline, prepare(graph, CompileOptions(**options)), file)
        self.file = file
        self.pipeline, self.platform = yaml.safe_load_all(file.read_text(encoding="utf-8"))

    @property
    def executors(self) -> dict[str, Any]:
        """What runs each step."""
        return {
            name.removeprefix("exec-"): executor["container"]
            for name, executor in self.pipeline["deploymentSpec"]["executors"].items()
        }

    @property
    def pods(self) -> dict[str, Any]:
        """What each step asks of Kubernetes."""
        found = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        return {name.removeprefix("exec-"): pod for name, pod in found.items()}

    @property
    def tasks(self) -> dict[str, Any]:
        """All tasks, those of loops and conditions too, by the names that people see."""
        components = (self.pipeline["root"], *self.pipeline["components"].values())
        return {
            task["taskInfo"]["name"]: task
            for component in components
            for task in component.get("dag", {}).get("tasks", {}).values()
        }

    def pods_of_a_run(self, ranges: int) -> int:
        """How many pods Kubeflow 2.17 makes of it, by the code of its compiler for Argo.

        Two for each step, a driver and an executor; a driver for the whole, for each loop and
        branch, and for each time that a loop's body is run.
        """

        def inside(component: dict[str, Any]) -> int:
            return sum(map(of_task, component["dag"]["tasks"].values()))

        def of_task(task: dict[str, Any]) -> int:
            component = self.pipeline["components"][task["componentRef"]["name"]]
            once = 1 + inside(component) if "dag" in component else 2
            return 1 + ranges * once if "parameterIterator" in task else once

        return 1 + inside(self.pipeline["root"])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(tmp_path_factory.mktemp("compiled") / "deep" / "pipeline.yaml")


def test_every_container_runs_its_step(compiled: Compiled) -> None:
    assert set(compiled.executors) == set(STEP_NAMES)
    for step, container in compiled.executors.items():
        assert container["command"] == ["python", "-m", "quantlib.steps", step]
        assert container["args"] == ["--executor-input", "{{$}}"]
        assert container["image"] == named_images().of(step)


def test_so_many_pods_are_a_run_as_the_decision_counts(compiled: Compiled, tmp_path: Path) -> None:
    counted = (Path(__file__).parents[3] / "docs" / "decisions" / "0009-one-table.md").read_text()
    watch = Compiled(tmp_path / "watch.yaml", WATCH)
    argo = len(STEP_NAMES) - 1 + 3 + 1  # three ranges, and the exit handler
    told = (compiled.pods_of_a_run(3), watch.pods_of_a_run(3), argo)
    assert told == (29, 32, 13)
    assert compiled.pods_of_a_run(16) == 68
    assert "| as it is | 29 | 32, and 4 where nothing is to be done | 13 |" in counted


def test_the_loop_is_called_what_it_runs_over(compiled: Compiled) -> None:
    assert set(compiled.tasks) == {*STEP_NAMES, "ranges"}
    loop = compiled.tasks["ranges"]
    assert loop["iteratorPolicy"] == {"parallelismLimit": 16}
    items = loop["parameterIterator"]["items"]["inputParameter"]
    assert loop["inputs"]["parameters"][items] == {
        "taskOutputParameter": {"outputParameterKey": "ranges", "producerTask": "plan"}
    }
    quantize = compiled.tasks["quantize"]["inputs"]["parameters"]
    assert quantize["block_range"] == {"componentInputParameter": f"{items}-loop-item"}
    quantized = compiled.pipeline["components"]["comp-merge"]["inputDefinitions"]["artifacts"]
    assert quantized["quantized"]["isArtifactList"] is True


def test_nothing_is_published_before_the_gate(compiled: Compiled) -> None:
    assert "gate" in compiled.tasks["publish"]["dependentTasks"]
    assert compiled.tasks["gate"]["dependentTasks"] == ["tasks", "validate"]
    assert not any("triggerPolicy" in task for task in compiled.tasks.values())


def test_caching_is_off_everywhere(compiled: Compiled) -> None:
    tasks = compiled.tasks
    assert {name for name in tasks if tasks[name].get("cachingOptions") == {}} == set(STEP_NAMES)


def test_the_form_of_a_run(compiled: Compiled) -> None:
    parameters = compiled.pipeline["root"]["inputDefinitions"]["parameters"]
    assert {name: spec.get("defaultValue") for name, spec in parameters.items()} == {
        "device": "auto",
        "gpu": "h100-80g",
        "model": "",
        "num_ranges": 0.0,
        "publish_to": "",
        "recipe": "gptq",
        "recipe_changes": {},
        "scheme": "as in the recipe",
        "store": None,
    }
    assert all(spec["description"] for spec in parameters.values())
    assert parameters["device"]["literals"] == ["auto", "cpu", "cuda"]
    assert {"gptq", "awq", "minmax"} <= set(parameters["recipe"]["literals"])
    assert {"W4A16", "FP8_DYNAMIC"} <= set(parameters["scheme"]["literals"])
    assert parameters["num_ranges"]["parameterType"] == "NUMBER_INTEGER"
    assert parameters["recipe_changes"]["parameterType"] == "STRUCT"


def test_what_a_team_adds_to_the_form(tmp_path: Path) -> None:
    profile = tmp_path / "cluster.yaml"
    profile.write_text("store: s3://team/store\npublish_to: s3://team/models\n")
    recipes = {"team-w8": load_recipe("minmax")}
    compiled = Compiled(tmp_path / "p.yaml", cluster=str(profile), recipes=recipes)
    parameters = compiled.pipeline["root"]["inputDefinitions"]["parameters"]
    assert parameters["store"]["defaultValue"] == "s3://team/store"
    assert parameters["publish_to"]["defaultValue"] == "s3://team/models"
    assert parameters["recipe"]["defaultValue"] == "team-w8"
    assert parameters["recipe"]["literals"][:2] == ["team-w8", "awq"]
    given = compiled.tasks["fetch"]["inputs"]["parameters"]["recipes"]["runtimeValue"]["constant"]
    assert given == {"team-w8": recipes["team-w8"].canonical_json()}


def test_steps_that_compute_ask_for_what_the_plan_says(compiled: Compiled) -> None:
    for step in ("calibrate", "quantize", "validate"):
        resources = compiled.executors[step]["resources"]
        asked = {
            "memory": resources["resourceMemoryLimit"],
            "cpus": resources["resourceCpuRequest"],
            "gpus": resources["accelerator"]["resourceCount"],
        }
        for what, value in asked.items():
            assert value == f"{{{{$.inputs.parameters['pipelinechannel--plan-{step}_{what}']}}}}"
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"]
        assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
        assert compiled.pods[step]["tolerations"]
    for step in ("fetch", "plan", "smooth", "merge", "gate", "publish"):
        assert "accelerator" not in compiled.executors[step]["resources"]
        assert "tolerations" not in compiled.pods[step]
        assert compiled.executors[step]["resources"]["resourceMemoryLimit"].endswith("Gi")
    # A step may take what CPUs are free, unless the profile says otherwise.
    assert "resourceCpuLimit" not in yaml.safe_dump(compiled.executors)


def test_every_pod_can_run_where_pods_are_restricted(compiled: Compiled) -> None:
    for step, pod in compiled.pods.items():
        context = {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
        assert pod["securityContext"] == context
        assert pod["podMetadata"]["labels"]["quantlib.io/step"] == step
        assert int(pod["activeDeadlineSeconds"]) >= 60
        assert "/scratch" in [mount["mountPath"] for mount in pod["emptyDirMounts"]]


def test_secrets_are_named_and_never_held(compiled: Compiled) -> None:
    for step, pod in compiled.pods.items():
        names = [source["secretName"] for source in pod["secretAsEnv"]]
        assert names == ["quantlib-s3", *(["quantlib-hub"] if step in ("fetch", "publish") else [])]
        assert all(source["optional"] for source in pod["secretAsEnv"])
        container = compiled.executors[step]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert set(environment) == {"QUANTLIB_CODE", "QUANTLIB_IMAGE", "QUANTLIB_LOG"}
        assert environment["QUANTLIB_IMAGE"] == container["image"]


def test_steps_know_their_run_by_the_label_that_kubeflow_gives_their_pods(
    compiled: Compiled,
) -> None:
    field = {"name": "QUANTLIB_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}
    assert all(pod["fieldPathAsEnv"] == [field] for pod in compiled.pods.values())


def test_vllm_has_shared_memory(compiled: Compiled) -> None:
    for step, pod in compiled.pods.items():
        shared = [mount for mount in pod["emptyDirMounts"] if mount["mountPath"] == "/dev/shm"]
        assert [mount["medium"] for mount in shared] == (
            ["Memory"] if step in ("validate", "tasks") else []
        )


def test_a_step_that_fails_after_a_day_is_still_retried(compiled: Compiled) -> None:
    policies = {name: task.get("retryPolicy") for name, task in compiled.tasks.items()}
    retried = {name for name in STEP_NAMES if policies[name] is not None}
    assert retried == set(STEP_NAMES) - {"plan", "gate"}
    quantize = policies["quantize"]
    assert quantize["maxRetryCount"] == 3
    longest = int(quantize["backoffMaxDuration"].removesuffix("s"))
    assert longest > int(compiled.pods["quantize"]["activeDeadlineSeconds"])


def test_volumes_and_nodes_of_a_profile(tmp_path: Path) -> None:
    profile = tmp_path / "cluster.yaml"
    profile.write_text(
        yaml.safe_dump(
            {
                "scratch": {"size": "9Gi", "storage_class": "fast"},
                "accelerator": {
                    "type": "amd.com/gpu",
                    "node_selector": {"pool": "a"},
                    "affinity": [{"key": "zone", "values": ["z"]}],
                },
                "steps": {"quantize": {"gpus": 2, "cpu": "3", "cpu_limit": "4"}},
            }
        )
    )
    compiled = Compiled(tmp_path / "p.yaml", cluster=str(profile))
    pod, resources = compiled.pods["quantize"], compiled.executors["quantize"]["resources"]
    (volume,) = pod["genericEphemeralVolume"]
    assert (volume["mountPath"], volume["size"]) == ("/scratch", "9Gi")
    assert volume["storageClassName"] == "fast"
    assert resources["accelerator"]["resourceType"] == "amd.com/gpu"
    assert resources["accelerator"]["resourceCount"] == "2"
    assert (resources["resourceCpuRequest"], resources["resourceCpuLimit"]) == ("3", "4")
    assert resources["resourceMemoryLimit"].startswith("{{")  # what is left out stays as it is
    assert pod["nodeSelector"] == {"labels": {"pool": "a"}}
    assert pod["nodeAffinity"][0]["matchExpressions"][0]["values"] == ["z"]


def test_publish_alone_gets_the_key_that_signs(tmp_path: Path) -> None:
    profile = tmp_path / "cluster.yaml"
    profile.write_text("signing_secret: release-key\n")
    compiled = Compiled(tmp_path / "p.yaml", cluster=str(profile))
    holders = {step for step, pod in compiled.pods.items() if "release-key" in yaml.safe_dump(pod)}
    assert holders == {"publish"}
    (volume,) = compiled.pods["publish"]["secretAsVolume"]
    assert (volume["secretName"], volume["mountPath"]) == ("release-key", "/signing")
    environment = compiled.executors["publish"]["env"]
    assert {"name": "QUANTLIB_SIGNING_KEY", "value": "/signing/key.pem"} in environment


def test_pods_of_one_recipe_carry_its_digest(tmp_path: Path, compiled: Compiled) -> None:
    recipe = load_recipe("awq")
    alone = Compiled(tmp_path / "p.yaml", recipes={"awq": recipe})
    label = alone.pods["quantize"]["podMetadata"]["labels"]["quantlib.io/recipe"]
    assert len(label) == 12
    assert recipe.digest().startswith(f"sha256:{label}")
    assert "quantlib.io/recipe" not in compiled.file.read_text()


def test_one_step_decides_about_a_release(tmp_path: Path) -> None:
    watch = Compiled(tmp_path / "watch.yaml", WATCH)
    assert set(watch.tasks) == {"resolve", *STEP_NAMES, "ranges", "release is new"}
    assert len(watch.pipeline["root"]["dag"]["tasks"]) == 2
    assert "== 'yes'" in watch.tasks["release is new"]["triggerPolicy"]["condition"]
    resolve = watch.tasks["resolve"]
    images = resolve["inputs"]["parameters"]["images"]["runtimeValue"]["constant"]
    assert images == list(named_images().of_quantization)
    source = watch.tasks["fetch"]["inputs"]["parameters"]["source"]["componentInputParameter"]
    assert source == "pipelinechannel--resolve-release"
    job = watch.tasks["publish"]["inputs"]["parameters"]["job"]["componentInputParameter"]
    assert job == "pipelinechannel--resolve-job"
    # A look is one small pod in the smallest image, whose answer is never taken from a cache.
    assert watch.executors["resolve"]["image"] == named_images().watch
    assert watch.executors["resolve"]["resources"]["resourceMemoryLimit"] == "1Gi"
    assert [mount["sizeLimit"] for mount in watch.pods["resolve"]["emptyDirMounts"]] == ["1Gi"]
    assert resolve["cachingOptions"] == {}


def test_kubernetes_objects_hold_the_compiled_pipeline(compiled: Compiled, tmp_path: Path) -> None:
    objects = tmp_path / "objects.yaml"
    write_kubernetes_manifests(compiled.file, objects, "team")
    pipeline, version = yaml.safe_load_all(objects.read_text())
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert {o["apiVersion"] for o in (pipeline, version)} == {"pipelines.kubeflow.org/v2beta1"}
    assert {o["metadata"]["namespace"] for o in (pipeline, version)} == {"team"}
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "quantize"
    assert version["metadata"]["name"] == f"quantize-{code_version().replace('+', '-')}"
    assert pipeline["spec"]["description"].startswith("Quantizes a model for vLLM")
    assert version["spec"]["pipelineSpec"] == compiled.pipeline
    assert version["spec"]["platformSpec"] == compiled.platform


@pytest.mark.parametrize(
    ("name", "cluster", "which"),
    [("gpu", "gpu", "quantize"), ("local", "local", "quantize"), ("watch", "gpu", "watch")],
)
def test_the_compiled_pipeline_is_what_it_was(
    name: str, cluster: str, which: str, tmp_path: Path
) -> None:
    """Compares with the file in golden/; UPDATE_GOLDEN=1 writes it anew after a change."""
    text = Compiled(tmp_path / "p.yaml", GRAPHS[which], cluster=cluster).file.read_text()
    for version in (code_version(), code_version().replace("+", "-")):
        text = text.replace(version, "CODE")
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert list(yaml.safe_load_all(text)) == list(yaml.safe_load_all(golden.read_text()))
