"""The component that watches for releases in Argo Workflows, added to each overlay."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hera.workflows import models
from manifests.conftest import MANIFESTS, Document, build_with, find

from pipelines.argo.compiling import write_workflow_template
from pipelines.compiling import CompileOptions, prepare
from pipelines.graph import WATCH
from quantlib.checks.recipe_choice import chosen_recipe

NAME = "quantlib-watch-smollm2-w4"


@pytest.fixture
def built(overlay: str, tmp_path: Path) -> list[Document]:
    return build_with(overlay, MANIFESTS / "components" / "watch-argo", tmp_path.resolve())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Document:
    file = tmp_path_factory.mktemp("watch") / "watch.yaml"
    write_workflow_template(prepare(WATCH, CompileOptions("local")), file, namespace="quantlib")
    return yaml.safe_load(file.read_text())


def test_the_cron_workflow_is_typed(built: list[Document]) -> None:
    document = find(built, "CronWorkflow", NAME)
    typed = models.CronWorkflow.model_validate(document)
    dumped = typed.model_dump(mode="json", by_alias=True, exclude_none=True)
    for part in ("metadata", "spec"):
        assert document[part] == {name: dumped[part][name] for name in document[part]}
    assert document["spec"]["concurrencyPolicy"] == "Forbid"


def test_it_gives_the_template_what_that_takes(built: list[Document], template: Document) -> None:
    spec = find(built, "CronWorkflow", NAME)["spec"]["workflowSpec"]
    assert spec["workflowTemplateRef"] == {"name": template["metadata"]["name"]}
    taken = {each["name"]: each for each in template["spec"]["arguments"]["parameters"]}
    given = {each["name"]: each["valueFrom"] for each in spec["arguments"]["parameters"]}
    needed = {name for name, each in taken.items() if "value" not in each}
    assert needed <= given.keys() <= taken.keys()
    for value in given.values():
        reference = value["configMapKeyRef"]
        source = find(built, "ConfigMap", reference["name"])
        assert reference["key"] in source["data"]
        kind = source["metadata"]["labels"]["workflows.argoproj.io/configmap-type"]
        assert kind == "Parameter", "Argo reads parameters from such maps alone"


def test_its_recipe_is_one_that_a_run_takes(built: list[Document]) -> None:
    text = find(built, "ConfigMap", NAME)["data"]["recipe"]
    assert "{{" not in text
    assert chosen_recipe(text).model
