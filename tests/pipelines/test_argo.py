"""The translation to Argo Workflows.

It is read by hera's typed models and stored by a real API server; test_argo_runs.py runs it.

The annotations of components are read by kfp, which does not resolve them from strings: no
``from __future__ import annotations`` here.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import kube_api
import pytest
from argo_interpreter import substitute
from hera.workflows import models
from kfp import dsl, kubernetes
from pod_security import restricted_problems

from pipelines import ir
from pipelines.platform_spec import KubernetesConfig
from quantlib.errors import InvalidInputError

Document = dict[str, Any]
Step = Callable[[str], dsl.ContainerSpec]
Translate = Callable[..., Document]


@pytest.fixture(scope="module")
def quantize(quantization: Callable[[str], Document]) -> Document:
    return quantization("gpu")


def templates(document: Document) -> dict[str, Document]:
    return {each["name"]: each for each in document["spec"]["templates"]}


def tasks(template: Document) -> dict[str, Document]:
    return {each["name"]: each for each in template["dag"]["tasks"]}


def pod(template: Document) -> Document:
    """The specification of a template's pod, as far as the template makes it."""
    names = ("securityContext", "volumes")
    return {name: template[name] for name in names} | {"containers": [template["container"]]}


def assert_typed(document: Document) -> None:
    """Every field of it is known to Argo, and has a value of the right type."""
    model = models.WorkflowTemplate.model_validate(document)
    assert _kept(document, model.model_dump(mode="json", by_alias=True, exclude_none=True))


def _kept(given: Any, typed: Any, path: str = "") -> bool:
    if isinstance(given, dict):
        assert not given.keys() - typed.keys(), (path, given.keys() - typed.keys())
        return all(_kept(value, typed[name], f"{path}.{name}") for name, value in given.items())
    if isinstance(given, list):
        assert len(given) == len(typed), path
        return all(_kept(*pair, path) for pair in zip(given, typed, strict=True))
    assert given == typed, path
    return True


@pytest.mark.parametrize("cluster", ["gpu", "local"])
def test_the_quantization_pipeline_is_typed_and_restricted(
    quantization: Callable[[str], Document], cluster: str
) -> None:
    document = quantization(cluster)
    assert_typed(document)
    containers = [each for each in templates(document).values() if "container" in each]
    assert len(containers) == 10  # nine steps and the exit handler
    for template in containers:
        assert restricted_problems(pod(template)) == []
        assert template["container"]["securityContext"]["readOnlyRootFilesystem"]
        assert template["metadata"]["labels"]["quantlib.io/run"] == "{{workflow.name}}"


def test_the_quantization_pipeline_keeps_its_shape(quantize: Document) -> None:
    spec = quantize["spec"]
    known = templates(quantize)
    root = tasks(known[spec["entrypoint"]])
    assert spec["serviceAccountName"] == "quantlib-runner"
    assert spec["onExit"] in known
    arguments = {each["name"]: each for each in spec["arguments"]["parameters"]}
    assert "value" not in arguments["store"]
    assert arguments["num_ranges"]["value"] == "0"
    assert "parallel" in arguments["num_ranges"]["description"]

    assert "depends" not in root["fetch"]
    assert root["plan"]["depends"] == "fetch.Succeeded"
    assert root["merge"]["depends"] == "fetch.Succeeded && for-loop-1.Succeeded"
    (iteration,) = known["for-loop-1"]["dag"]["tasks"]
    assert iteration["withParam"] == "{{inputs.parameters.pipelinechannel--plan-ranges}}"
    output, summary = known["quantize"]["outputs"]["artifacts"]
    assert (output["name"], summary["name"]) == ("quantized", "summary")
    (read,) = (a for a in root["merge"]["arguments"]["artifacts"] if a["name"] == "quantized")
    assert output["s3"]["key"] == f"{read['s3']['key']}/{{{{inputs.parameters.loop-item}}}}"
    branches = [task["when"] for task in tasks(known["condition-branches-2"]).values()]
    verdict = "inputs.parameters['pipelinechannel--validate-verdict'] == 'passed'"
    assert branches == [f"{{{{={verdict}}}}}", f"{{{{=!({verdict})}}}}"]


def test_what_a_pod_asks_for_is_translated(translate: Translate) -> None:
    @dsl.container_component
    def measure(size: dsl.OutputPath(str)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
        return dsl.ContainerSpec(image="i:1.0.0", command=["true"])

    @dsl.container_component
    def work() -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image="i:1.0.0", command=["true"])

    @dsl.pipeline(name="toy")
    def toy() -> None:
        task = work().set_memory_limit(measure().outputs["size"]).set_cpu_request("500m")
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(2)
        task.set_env_variable("MODE", "fast")
        task.set_retry(3, "30s", 2.0, "3600s")
        kubernetes.use_secret_as_env(task, "keys", {"key": "KEY"}, optional=True)
        kubernetes.use_config_map_as_env(task, "places", {"url": "URL"})
        kubernetes.use_secret_as_volume(task, "signing", "/signing")
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="1Gi")
        kubernetes.add_ephemeral_volume(
            task, "scratch", "/scratch", ["ReadWriteOnce"], "9Gi", "fast"
        )
        kubernetes.add_toleration(task, key="gpu", operator="Exists", effect="NoSchedule")
        kubernetes.add_node_selector(task, "pool", "a")
        kubernetes.add_node_affinity(
            task, match_expressions=[{"key": "zone", "operator": "In", "values": ["z"]}]
        )
        kubernetes.add_pod_label(task, "quantlib.io/step", "work")
        kubernetes.set_image_pull_policy(task, "Always")
        kubernetes.set_timeout(task, 60)
        kubernetes.set_security_context(task, run_as_user=7, run_as_non_root=True)

    document = translate(toy)
    assert_typed(document)
    template = templates(document)["work"]
    container = template["container"]
    assert restricted_problems(pod(template)) == []
    (memory,) = (each["name"] for each in template["inputs"]["parameters"])
    assert json.loads(template["podSpecPatch"]) == {
        "containers": [
            {
                "name": "main",
                "resources": {"limits": {"memory": f"{{{{inputs.parameters.{memory}}}}}"}},
            }
        ]
    }
    (argument,) = tasks(templates(document)["pipeline"])["work"]["arguments"]["parameters"]
    assert argument == {"name": memory, "value": "{{tasks.measure.outputs.parameters.size}}"}
    assert container["resources"] == {
        "requests": {"cpu": "500m"},
        "limits": {"nvidia.com/gpu": "2"},
    }
    assert container["imagePullPolicy"] == "Always"
    key = {"name": "keys", "key": "key", "optional": True}
    assert container["env"] == [
        {"name": "MODE", "value": "fast"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": key}},
        {"name": "URL", "valueFrom": {"configMapKeyRef": {"name": "places", "key": "url"}}},
    ]
    assert {each["mountPath"] for each in container["volumeMounts"]} == {
        "/dev/shm",
        "/outputs",
        "/scratch",
        "/signing",
        "/tmp",
    }
    (mount,) = (each for each in container["volumeMounts"] if each["mountPath"] == "/signing")
    assert mount == {"name": "secret-signing", "mountPath": "/signing", "readOnly": True}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "9Gi"}},
        "storageClassName": "fast",
    }
    assert template["volumes"][:3] == [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}},
        {"name": "secret-signing", "secret": {"secretName": "signing"}},
    ]
    assert template["securityContext"]["runAsUser"] == template["securityContext"]["fsGroup"] == 7
    assert template["metadata"]["labels"]["quantlib.io/step"] == "work"
    assert template["activeDeadlineSeconds"] == 60
    assert template["nodeSelector"] == {"pool": "a"}
    (term,) = template["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z"]}]}
    assert template["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert template["retryStrategy"] == {
        "limit": "3",
        "retryPolicy": "Always",
        "expression": "asInt(lastRetry.exitCode) not in [2, 3]",
        "backoff": {"duration": "30s", "factor": "2", "maxDuration": "3600s"},
    }


def test_choices_of_a_parameter_are_an_enumeration(translate: Translate, step: Step) -> None:
    @dsl.container_component
    def use(mode: str) -> dsl.ContainerSpec:
        return step("")

    @dsl.pipeline(name="toy")
    def toy(mode: str = "a") -> None:
        use(mode=mode)

    def restrict(document: Document) -> None:
        document["root"]["inputDefinitions"]["parameters"]["mode"]["literals"] = ["a", ""]

    document = translate(toy, restrict)
    (argument,) = document["spec"]["arguments"]["parameters"]
    assert argument == {"name": "mode", "value": "a", "enum": ["a", ""]}
    assert_typed(document)


def test_conditions_compare_numbers_and_truth_values(translate: Translate, step: Step) -> None:
    @dsl.container_component
    def use() -> dsl.ContainerSpec:
        return step("")

    @dsl.pipeline(name="toy")
    def toy(count: int, sure: bool) -> None:
        with dsl.If(count > 3):
            use()
        with dsl.If(sure == True):  # noqa: E712  # kfp builds the condition from the comparison
            use()

    document = translate(toy)
    first, second = (task["when"] for task in tasks(templates(document)["pipeline"]).values())
    names = {f"inputs.parameters.{name}": name for name in ("count", "sure")}
    for count, sure in (("4", "true"), ("3", "false")):
        values = dict(zip(names, (count, sure), strict=True))
        assert substitute(first, values) == json.dumps(count == "4"), first
        assert substitute(second, values) == sure, second


def refusals(step: Step) -> dict[str, tuple[Any, str]]:
    """Pipelines that Argo has no form for, and what the error says."""

    @dsl.container_component
    def make(size: dsl.OutputPath(int), name: dsl.OutputPath(str)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
        return step("")

    @dsl.container_component
    def use(value: str) -> dsl.ContainerSpec:
        return step("")

    @dsl.container_component
    def total(sizes: list[int]) -> dsl.ContainerSpec:
        return step("")

    @dsl.container_component
    def unpack(value: dict) -> dsl.ContainerSpec:  # type: ignore[type-arg]
        return step("")

    @dsl.pipeline(name="toy")
    def numbers() -> None:
        with dsl.ParallelFor(["a", "b"]):
            made = make()
        total(sizes=dsl.Collected(made.outputs["size"]))

    @dsl.pipeline(name="toy")
    def one_of(mode: str) -> None:
        with dsl.If(mode == "a"):
            first = make()
        with dsl.Else():
            second = make()
        use(value=dsl.OneOf(first.outputs["name"], second.outputs["name"]))

    @dsl.pipeline(name="toy")
    def tag() -> None:
        use(value="{{workflow.name}}")

    @dsl.pipeline(name="toy")
    def default(text: str = "{{=1}}") -> None:
        use(value=text)

    @dsl.pipeline(name="toy")
    def factor() -> None:
        use(value="a").set_retry(2, "1s", 1.5, "9s")

    @dsl.pipeline(name="toy")
    def root() -> None:
        kubernetes.set_security_context(use(value="a"), run_as_user=0)

    @dsl.pipeline(name="toy")
    def objects() -> None:
        with dsl.ParallelFor([{"a": "b"}]) as item:
            unpack(value=item)

    return {
        "numbers": (numbers, "task for-loop-2: collects .*NUMBER_INTEGER"),
        "one of": (one_of, "task condition-branches-1: has an output of whichever ran"),
        "tag": (tag, "task use: holds {{, which Argo would replace"),
        "default": (default, "parameter text: holds {{"),
        "factor": (factor, "task use: its retries wait 1.5 times longer"),
        "root": (root, "task use: runs as root"),
        "objects": (objects, "task for-loop-2: loops over .*no plain value"),
    }


@pytest.mark.parametrize(
    "name", ["numbers", "one of", "tag", "default", "factor", "root", "objects"]
)
def test_what_argo_has_no_form_for_is_refused(translate: Translate, step: Step, name: str) -> None:
    pipeline, message = refusals(step)[name]
    with pytest.raises(InvalidInputError, match=message):
        translate(pipeline)


def test_a_field_that_is_new_to_the_reading_is_translated_or_refused() -> None:
    known = {
        ir.ParameterSpec: "type optional default literals description",
        ir.ArtifactSpec: "schema_title schema_version is_list optional",
        ir.Loop: "items item_input parallelism",
        ir.Retry: "count delay factor limit",
        ir.Task: "name component parameters artifacts dependencies condition loop retry "
        "pod_parameters",
        ir.Resources: "cpu_request cpu_limit memory_request memory_limit accelerator_type "
        "accelerator_count",
        ir.Container: "image argv environment resources kubernetes",
        ir.Dag: "tasks parameters artifacts",
        KubernetesConfig: "secrets config_maps secret_volumes empty_dirs ephemeral_volumes "
        "node_selector tolerations affinity labels annotations pull_policy timeout user group "
        "non_root",
    }
    for kind, names in known.items():
        # Where this fails, teach pipelines/argo.py the new field and name it here.
        assert [field.name for field in dataclasses.fields(kind)] == names.split(), kind


@pytest.fixture(scope="module")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if reason := kube_api.missing():
        pytest.skip(reason)
    with kube_api.api_server(tmp_path_factory.mktemp("kube")) as server:
        yield server


@pytest.mark.slow
def test_an_api_server_stores_it(quantize: Document, api_server: kube_api.ApiServer) -> None:
    api_server.accept("argoproj.io", "v1alpha1", "WorkflowTemplate")
    api_server.kubectl("apply", "-f-", document=quantize)
    stored = json.loads(api_server.kubectl("get", "workflowtemplates", "quantize", "-ojson").stdout)
    assert stored["spec"] == quantize["spec"]
