"""What serves: a runtime that ends gently, and a container that verifies before vLLM starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests.conftest import MANIFESTS
from pod_security import restricted_problems

import quantlib
from quantlib.serving import initializer

Documents = list[dict[str, Any]]
DEFAULT_GRACE_SECONDS = 30


def named(documents: Documents, kind: str, name: str) -> dict[str, Any]:
    [document] = [
        each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name
    ]
    return document


@pytest.fixture
def storage(documents: Documents) -> dict[str, Any]:
    return named(documents, "ClusterStorageContainer", "quantlib-verified")["spec"]


@pytest.fixture
def server(documents: Documents) -> dict[str, Any]:
    [container] = named(documents, "ServingRuntime", "quantlib-vllm")["spec"]["containers"]
    return container


def test_the_initializer_runs_in_an_image_of_ours(storage: dict[str, Any]) -> None:
    container = storage["container"]
    assert container["name"] == "storage-initializer", "KServe merges it into the one of this name"
    *python, module = container["command"]
    assert python == ["python", "-m"]
    assert module == initializer.__name__
    assert "args" not in container, "they would take the place of the source and the target"
    assert container["image"] == f"quantlib-watch:{quantlib.__version__}"
    assert storage["workloadType"] == "initContainer"
    assert storage["supportsMultiModelDownload"] is False


def test_the_initializer_is_as_locked_down_as_a_step(storage: dict[str, Any]) -> None:
    container = storage["container"]
    assert restricted_problems({"containers": [container]}) == []
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_the_key_comes_from_a_map_in_the_namespace_that_serves(
    storage: dict[str, Any], documents: Documents
) -> None:
    variables = {each["name"]: each for each in storage["container"]["env"]}
    assert variables.keys() == {initializer.KEY_VARIABLE, initializer.REQUIRE_VARIABLE}
    assert variables[initializer.REQUIRE_VARIABLE]["value"] == "true"
    source = variables[initializer.KEY_VARIABLE]["valueFrom"]["configMapKeyRef"]
    config_map = named(documents, "ConfigMap", source["name"])
    assert config_map["metadata"]["namespace"] == "quantlib-serving"
    assert config_map["data"][source["key"]].startswith("-----BEGIN PUBLIC KEY-----")
    assert not source.get("optional"), "without the key it does not start"


def test_it_is_for_the_addresses_that_the_watchers_publish_to(storage: dict[str, Any]) -> None:
    [claimed] = storage["supportedUriFormats"]
    for name in ("watch-kubeflow", "watch-argo"):
        text = Path(MANIFESTS, "components", name, "kustomization.yaml").read_text()
        [destination] = re.findall(r"(?:PUBLISH_TO|publish_to)=(\S+)", text)
        assert claimed == {"prefix": f"{destination}/"}


def test_a_pod_ends_within_the_time_that_it_gets(server: dict[str, Any]) -> None:
    [sleep, pause] = server["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    arguments = dict(each.removeprefix("--").split("=") for each in server["args"])
    assert int(pause) >= 5, "the news that a pod is gone takes seconds"
    assert int(arguments["shutdown-timeout"]) >= 10
    assert int(pause) + int(arguments["shutdown-timeout"]) + 5 <= DEFAULT_GRACE_SECONDS


def test_the_runtime_is_chosen_by_name_alone(documents: Documents) -> None:
    runtime = named(documents, "ServingRuntime", "quantlib-vllm")
    assert runtime["metadata"]["namespace"] == "quantlib-serving"
    assert [each["autoSelect"] for each in runtime["spec"]["supportedModelFormats"]] == [False]


def test_nothing_is_compiled_where_there_is_no_compiler(
    server: dict[str, Any], overlay: str
) -> None:
    variables = {each["name"]: each["value"] for each in server["env"]}
    assert ("TORCH_COMPILE_DISABLE" in variables) is (overlay == "local")


def test_the_version_of_vllm_is_the_one_that_validates(server: dict[str, Any]) -> None:
    pins = (MANIFESTS.parent / "pyproject.toml").read_text()
    [version] = re.findall(r'^vllm = \["vllm==(.+)"\]', pins, re.MULTILINE)
    assert server["image"] == f"vllm/vllm-openai:v{version}"


def test_what_is_kserves_is_in_components_alone() -> None:
    for path in (MANIFESTS / "base").glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            assert not document["apiVersion"].startswith("serving.kserve.io/"), path.name
