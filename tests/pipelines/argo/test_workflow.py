"""The templates of the workflows: what follows on what, and what passes between the steps."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kube_api
import pytest
import yaml
from hera.workflows import models

from pipelines.graph import QUANTIZE
from quantlib.runtime.code_version import code_version

Document = dict[str, Any]
TemplateOf = Callable[[str, str], Document]
CASES = [("quantize", "gpu"), ("quantize", "local"), ("quantize", "own"), ("watch", "gpu")]
STEPS = [step.name for step in QUANTIZE.steps]


def templates(document: Document) -> dict[str, Document]:
    return {each["name"]: each for each in document["spec"]["templates"]}


def tasks(template: Document) -> dict[str, Document]:
    return {each["name"]: each for each in template["dag"]["tasks"]}


def given(names: list[Document]) -> dict[str, Any]:
    return {each["name"]: each.get("value") or each.get("from") for each in names}


@pytest.mark.parametrize(("graph", "cluster"), CASES)
def test_every_field_is_one_of_argo(template_of: TemplateOf, graph: str, cluster: str) -> None:
    document = template_of(graph, cluster)
    model = models.WorkflowTemplate.model_validate(document)
    assert model.model_dump(mode="json", by_alias=True, exclude_none=True) == document


def test_the_steps_follow_on_what_they_need(template_of: TemplateOf) -> None:
    known = templates(template_of("quantize", "gpu"))
    assert list(known) == ["pipeline", "quantize-ranges", *STEPS, "report-outcome"]
    depends = {name: task.get("depends") for name, task in tasks(known["pipeline"]).items()}
    assert depends == {
        "fetch": None,
        "plan": "fetch.Succeeded",
        "calibrate": "plan.Succeeded && fetch.Succeeded",
        "smooth": "plan.Succeeded && fetch.Succeeded && calibrate.Succeeded",
        "quantize": "plan.Succeeded && fetch.Succeeded && calibrate.Succeeded && smooth.Succeeded",
        "merge": "plan.Succeeded && fetch.Succeeded && quantize.Succeeded",
        "validate": "plan.Succeeded && fetch.Succeeded && merge.Succeeded",
        "tasks": "plan.Succeeded && fetch.Succeeded && merge.Succeeded",
        "gate": "validate.Succeeded && tasks.Succeeded",
        "publish": "plan.Succeeded && merge.Succeeded && validate.Succeeded && tasks.Succeeded && "
        "gate.Succeeded",
    }
    assert not [name for name, task in tasks(known["pipeline"]).items() if "when" in task]


def passed(document: Document) -> Iterator[tuple[Document, Document, Document]]:
    """Every DAG, each of its tasks, and the template that this calls."""
    known = templates(document)
    for template in known.values():
        if "dag" in template:
            yield from (
                (template, task, known[task["template"]]) for task in tasks(template).values()
            )


@pytest.mark.parametrize(("graph", "cluster"), CASES)
def test_every_input_is_given_by_something_that_ran_before(
    template_of: TemplateOf, graph: str, cluster: str
) -> None:
    document = template_of(graph, cluster)
    for dag, task, called in passed(document):
        for kind in ("parameters", "artifacts"):
            arguments = task["arguments"].get(kind, [])
            assert {each["name"] for each in arguments} == {
                each["name"] for each in called["inputs"].get(kind, [])
            }, task["name"]
            own = {each["name"] for each in dag["inputs"].get(kind, [])}
            text = json.dumps(arguments)
            assert set(re.findall(rf"\{{\{{inputs\.{kind}\.(\w+)\}}\}}", text)) <= own
            for step, output in re.findall(
                rf"\{{\{{tasks\.(\w+)\.outputs\.{kind}\.(\w+)\}}\}}", text
            ):
                assert f"{step}.Succeeded" in task["depends"].split(" && ")
                made = templates(document)[step]["outputs"][kind]
                assert output in {each["name"] for each in made}


def test_ranges_are_quantized_side_by_side_and_collected_in_a_folder(
    template_of: TemplateOf,
) -> None:
    known = templates(template_of("quantize", "gpu"))
    outer = tasks(known["pipeline"])["quantize"]
    loop = known["quantize-ranges"]
    assert outer["template"] == "quantize-ranges"
    ranges = given(outer["arguments"]["parameters"])["ranges"]
    assert ranges == "{{tasks.plan.outputs.parameters.ranges}}"
    assert loop["parallelism"] == 16
    (each,) = loop["dag"]["tasks"]
    assert (each["template"], each["withParam"]) == ("quantize", "{{inputs.parameters.ranges}}")
    assert given(each["arguments"]["parameters"])["block_range"] == "{{item}}"

    written, summary = known["quantize"]["outputs"]["artifacts"]
    assert (written["name"], summary["name"]) == ("quantized", "quantize_summary")
    assert "s3" not in summary
    read = tasks(known["pipeline"])["merge"]["arguments"]["artifacts"][-1]
    folder = "{{workflow.name}}/{{workflow.uid}}/quantize/quantized"
    assert read == {"name": "quantized", "s3": {"key": folder}, "archive": {"none": {}}}
    assert written["s3"] == {"key": folder + "/{{inputs.parameters.block_range}}"}


def test_the_workflow_takes_what_a_run_is_asked_for(template_of: TemplateOf) -> None:
    spec = template_of("quantize", "gpu")["spec"]
    arguments = {each["name"]: each for each in spec["arguments"]["parameters"]}
    assert arguments.keys() == {
        each["name"] for each in spec["templates"][0]["inputs"]["parameters"]
    }
    assert "value" not in arguments["store"]
    values = {name: each.get("value") for name, each in arguments.items()}
    assert values["num_ranges"] == "0"
    assert values["recipe_changes"] == "{}"
    assert values["gpu"] == "h100-80g"
    assert "parallel" in arguments["num_ranges"]["description"]
    assert {name for name, each in arguments.items() if "enum" in each} == {
        "scheme",
        "device",
        "gpu",
    }
    assert arguments["device"]["enum"] == ["auto", "cpu", "cuda"]
    for each in arguments.values():
        assert each.get("value") in each.get("enum", [each.get("value")])


def test_a_run_ends_with_a_report_and_goes_after_a_week(template_of: TemplateOf) -> None:
    document = template_of("quantize", "gpu")
    spec = document["spec"]
    assert document["metadata"]["namespace"] == "default"
    assert spec["serviceAccountName"] == "quantlib-runner"
    assert spec["ttlStrategy"] == {"secondsAfterCompletion": 7 * 24 * 3600}
    assert spec["podGC"] == {"strategy": "OnWorkflowSuccess"}
    report = templates(document)[spec["onExit"]]
    told = ["{{workflow.status}}", "{{workflow.failures}}", "{{workflow.parameters.model}}"]
    assert report["container"]["args"][-3:] == told


def test_a_look_that_finds_nothing_new_runs_nothing_else(template_of: TemplateOf) -> None:
    document = template_of("watch", "gpu")
    known = templates(document)
    resolve, *others = known["pipeline"]["dag"]["tasks"]
    assert resolve["name"] == "resolve"
    assert not resolve.keys() & {"when", "depends"}
    assert [task["name"] for task in others] == STEPS
    for task in others:
        assert "resolve.Succeeded" in task["depends"].split(" && ")
        (expression,) = re.fullmatch(r"\{\{=(.*)\}\}", task["when"]).groups()  # type: ignore[union-attr]
        for needed in ("yes", "no"):
            outputs = SimpleNamespace(parameters={"needed": needed})
            scope = {"tasks": {"resolve": SimpleNamespace(outputs=outputs)}}
            assert eval(expression, scope) is (needed == "yes")
    # A look pulls one image.
    images = {known[name]["container"]["image"] for name in ("resolve", "report-outcome")}
    assert len(images) == 1


def test_a_look_passes_on_the_release_that_it_found(template_of: TemplateOf) -> None:
    root = tasks(templates(template_of("watch", "gpu"))["pipeline"])
    source = given(root["fetch"]["arguments"]["parameters"])["source"]
    assert source == "{{tasks.resolve.outputs.parameters.release}}"
    job = given(root["publish"]["arguments"]["parameters"])["job"]
    assert job == "{{tasks.resolve.outputs.parameters.job}}"
    images = given(root["resolve"]["arguments"]["parameters"])["images"]
    assert len(json.loads(images)) == 3


@pytest.mark.parametrize("cluster", ["gpu", "local"])
def test_the_template_is_what_it_was(template_of: TemplateOf, cluster: str) -> None:
    """Compares with the file in golden/; UPDATE_GOLDEN=1 writes it anew after a change."""
    text = yaml.safe_dump(template_of("quantize", cluster), sort_keys=False, width=100)
    text = text.replace(code_version(), "CODE").replace(code_version().replace("+", "-"), "CODE")
    golden = Path(__file__).parents[1] / "golden" / f"argo-{cluster}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert yaml.safe_load(text) == yaml.safe_load(golden.read_text())


@pytest.fixture(scope="module")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if reason := kube_api.missing():
        pytest.skip(reason)
    with kube_api.api_server(tmp_path_factory.mktemp("kube")) as server:
        yield server


@pytest.mark.slow
def test_an_api_server_stores_it(template_of: TemplateOf, api_server: kube_api.ApiServer) -> None:
    document = template_of("quantize", "gpu")
    api_server.accept("argoproj.io", "v1alpha1", "WorkflowTemplate")
    api_server.kubectl("apply", "-f-", document=document)
    stored = json.loads(api_server.kubectl("get", "workflowtemplates", "quantize", "-ojson").stdout)
    assert stored["spec"] == document["spec"]
