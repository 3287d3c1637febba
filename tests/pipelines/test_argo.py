"""The translation to Argo Workflows.

It is read by hera's typed models, run by a stand-in for Argo's controller, and stored by a real API
server.

The annotations of components are read by kfp, which does not resolve them from strings: no
``from __future__ import annotations`` here.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kube_api
import pytest
import yaml
from argo_interpreter import Workflow, substitute
from hera.workflows import models
from kfp import dsl, kubernetes
from pod_security import restricted_problems

from pipelines import ir
from pipelines.argo import workflow_template, write_workflow_template
from pipelines.compiling import CompileOptions, compile_to
from pipelines.platform_spec import KubernetesConfig
from pipelines.reader import load_pipeline, read_pipeline
from quantlib.errors import InvalidInputError

Document = dict[str, Any]
Step = Callable[[str], dsl.ContainerSpec]
Translate = Callable[..., Document]


def quantization(folder: Path, cluster: str) -> Document:
    """The quantization pipeline, by way of a file."""
    compile_to(folder / "pipeline.yaml", CompileOptions(cluster))
    file = folder / "argo" / "workflow.yaml"
    write_workflow_template(load_pipeline(folder / "pipeline.yaml"), file, namespace="default")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def quantize(tmp_path_factory: pytest.TempPathFactory) -> Document:
    return quantization(tmp_path_factory.mktemp("argo"), "gpu")


@pytest.fixture
def translate(compiled: Callable[[Any], Path]) -> Translate:
    """Compiles and translates a pipeline; ``change`` may edit the compiled one."""

    def translate_it(
        pipeline: Any, change: Callable[[Document], None] = lambda _: None
    ) -> Document:
        documents = list(yaml.safe_load_all(compiled(pipeline).read_text(encoding="utf-8")))
        change(documents[0])
        return workflow_template(read_pipeline(yaml.safe_dump_all(documents)))

    return translate_it


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
def test_the_quantization_pipeline_is_typed_and_restricted(tmp_path: Path, cluster: str) -> None:
    document = quantization(tmp_path, cluster)
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
    (output,) = known["quantize"]["outputs"]["artifacts"]
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
        "/tmp",
    }
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "9Gi"}},
        "storageClassName": "fast",
    }
    assert template["volumes"][:2] == [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}},
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


def test_texts_reach_a_step_as_they_are(translate: Translate, step: Step, tmp_path: Path) -> None:
    @dsl.container_component
    def use(text: str, number: int, flags: list, whole: dsl.OutputPath(str)) -> dsl.ContainerSpec:
        return step("write('whole', inputs)")

    @dsl.pipeline(name="toy")
    def toy(text: str, number: int = 3) -> None:
        use(text=text, number=number, flags=["<a>", 'b"'])

    text = 'a: "b"\n# it\'s \\ here\n\ttab: {x: {y: "é }} <&>"}}\n'
    workflow = Workflow(translate(toy), tmp_path / "argo")
    assert workflow.run(text=text) == "Succeeded"
    (written,) = (tmp_path / "argo" / "pods").glob("*-use/outputs/whole")
    assert json.loads(written.read_text()) == {
        "text": text,
        "number": 3,
        "flags": ["<a>", 'b"'],
    }


@pytest.fixture(scope="module")
def ranges(step: Step) -> Any:
    """Split -> work for each part -> join, and a branch on what it found."""

    @dsl.container_component
    def split(count: int, parts: dsl.OutputPath(list[str])) -> dsl.ContainerSpec:
        return step("write('parts', [f'{i}:{i + 1}' for i in range(inputs['count'])])")

    @dsl.container_component
    def work(
        part: str, piece: dsl.Output[dsl.Artifact], name: dsl.OutputPath(str)
    ) -> dsl.ContainerSpec:
        return step(
            "artifact('outputs', 'piece').write_text('<' + inputs['part']);"
            "write('name', inputs['part'])"
        )

    @dsl.container_component
    def join(
        pieces: dsl.Input[list[dsl.Artifact]], names: list[str], whole: dsl.OutputPath(str)
    ) -> dsl.ContainerSpec:
        return step(
            "files_of = sorted(artifact('inputs', 'pieces').iterdir());"
            "pieces = [path.read_text() for path in files_of];"
            "write('whole', ''.join(pieces) + '|' + ' '.join(inputs['names']))"
        )

    @dsl.container_component
    def tell(what: str) -> dsl.ContainerSpec:
        return step("print(inputs['what'])")

    @dsl.pipeline(name="toy")
    def toy(count: int) -> None:
        with dsl.ParallelFor(split(count=count).outputs["parts"], parallelism=2) as part:
            worked = work(part=part)
        joined = join(
            pieces=dsl.Collected(worked.outputs["piece"]),
            names=dsl.Collected(worked.outputs["name"]),
        )
        with dsl.If(joined.outputs["whole"] == "<0:1<1:2|0:1 1:2"):
            tell(what="two")
        with dsl.Else():
            tell(what=joined.outputs["whole"])

    return toy


@pytest.mark.parametrize(("count", "said"), [("2", "two"), ("3", "<0:1<1:2<2:3|0:1 1:2 2:3")])
def test_a_fan_out_is_collected_as_a_folder(
    ranges: Any, translate: Translate, tmp_path: Path, count: str, said: str
) -> None:
    document = translate(ranges)
    assert_typed(document)
    assert templates(document)["for-loop-1"]["parallelism"] == 2
    workflow = Workflow(document, tmp_path)
    assert workflow.run(count=count) == "Succeeded"
    *_, told, handler = workflow.pods
    assert told.log == f"{said}\n"
    assert handler.log == "Succeeded []\n"
    names = [f"{i}:{i + 1}" for i in range(int(count))]
    folder = workflow.repository / "run-1" / "u-1" / "work" / "piece"
    assert sorted(path.name for path in folder.iterdir()) == names


@pytest.mark.parametrize(("code", "attempts"), [(1, 3), (137, 3), (2, 1), (3, 1)])
def test_a_final_exit_code_is_not_retried(
    translate: Translate, step: Step, tmp_path: Path, code: int, attempts: int
) -> None:
    @dsl.container_component
    def fail() -> dsl.ContainerSpec:
        return step(f"sys.exit({code})")

    @dsl.container_component
    def after() -> dsl.ContainerSpec:
        return step("")

    @dsl.pipeline(name="toy")
    def toy() -> None:
        after().after(fail().set_retry(2))

    workflow = Workflow(translate(toy), tmp_path)
    assert workflow.run() == "Failed"
    assert workflow.ran() == ["fail"] * attempts + ["report-outcome"]
    assert workflow.pods[-1].log == "Failed []\n"


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
        KubernetesConfig: "secrets config_maps empty_dirs ephemeral_volumes node_selector "
        "tolerations affinity labels annotations pull_policy timeout user group non_root",
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
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    group, plural = "argoproj.io", "workflowtemplates"
    api_server.kubectl(
        "apply",
        "-f-",
        document={
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {
                "group": group,
                "names": {"kind": "WorkflowTemplate", "plural": plural},
                "scope": "Namespaced",
                "versions": [
                    {
                        "name": "v1alpha1",
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": schema},
                    }
                ],
            },
        },
    )
    api_server.kubectl("wait", "--for=condition=Established", f"crd/{plural}.{group}")
    api_server.kubectl("apply", "-f-", document=quantize)
    stored = json.loads(api_server.kubectl("get", plural, "quantize", "-ojson").stdout)
    assert stored["spec"] == quantize["spec"]


RECIPE = """
# "Quotes", it's \\ all here: <&> é
quantization: {weights: {bits: 4, group_size: 32}}
calibration:
  num_samples: 8
  sequence_length: 64
num_ranges: 2
validation:
  engine: 'transformers'
  num_samples: 4
  sequence_length: 64
  prompts: ["He said \\"no\\"\\n"]
  max_new_tokens: 4
  thresholds: {max_perplexity_increase: 10, max_kl_mean: LIMIT, min_top1_agreement: 0.001}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "status", "last"), [("20", "Succeeded", "publish"), ("1e-9", "Failed", "gate")]
)
def test_the_real_steps_run_as_argo_starts_them(
    quantize: Document, tiny_llama: Path, tmp_path: Path, limit: str, status: str, last: str
) -> None:
    workflow = Workflow(quantize, tmp_path / "argo")
    outcome = workflow.run(
        recipe=RECIPE.replace("LIMIT", limit),
        store=str(tmp_path / "store"),
        source=str(tiny_llama),
        destination=str(tmp_path / "published"),
        device="cpu",
    )
    assert outcome == status, workflow.pods[-2].log
    steps = ["fetch", "plan", "calibrate", "smooth", "quantize", "quantize", "merge", "validate"]
    assert workflow.ran() == [*steps, last, "report-outcome"]
    assert workflow.pods[-2].exit_code == (3 if last == "gate" else 0)
    for each in workflow.pods:
        if each.template["name"] in ("calibrate", "quantize", "validate"):
            (main,) = json.loads(each.template["podSpecPatch"])["containers"]
            assert re.fullmatch(r"\d+Gi", main["resources"]["limits"]["memory"])
    assert len(list(tmp_path.glob("published/*/*/manifest.json"))) == (last == "publish")
    assert len(list(workflow.repository.glob("run-1/*-validate/report.html"))) == 1
