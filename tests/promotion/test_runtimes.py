"""Which image would run vLLM, as far as documents say it."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml
from promotion.services import SERVICES

from quantlib.promotion.kinds import KINDS
from quantlib.promotion.runtimes import Runtime, runtime_of

Document = dict[str, Any]


def runtime(name: str, image: str | None, kind: str = "ClusterServingRuntime", **spec: Any) -> Any:
    container = {"name": "kserve-container"} | ({"image": image} if image else {})
    formats = [{"name": "vllm", "autoSelect": True}]
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"supportedModelFormats": formats, "containers": [container]} | spec,
    }


NEAR = runtime("near", "registry:5000/vllm:v0.31.0", "ServingRuntime")
FAR = runtime("far", "vllm/vllm-openai:v0.32.0")


def service(kind: str = "InferenceService", **model: Any) -> Document:
    document = yaml.safe_load(SERVICES[kind])
    if kind == "InferenceService":
        del document["spec"]["predictor"]["model"]["image"]
        document["spec"]["predictor"]["model"] |= model
    return document


def found(document: Document, *levels: list[Document], complete: bool = True) -> Runtime:
    return runtime_of(KINDS[document["kind"]], document, levels, complete=complete)


@pytest.mark.parametrize("kind", SERVICES)
def test_the_services_own_image_comes_first(kind: str) -> None:
    def untouched() -> Iterator[list[Document]]:
        raise AssertionError("no runtime is asked for")
        yield []

    document = yaml.safe_load(SERVICES[kind])
    known = runtime_of(KINDS[kind], document, untouched(), complete=True)
    assert known == Runtime("vllm/vllm-openai:v0.32.0", f"the {kind}")


def test_a_runtime_by_its_name() -> None:
    assert found(service(runtime="far"), [NEAR], [FAR]).image == "vllm/vllm-openai:v0.32.0"
    same = deepcopy(NEAR)
    same["metadata"]["name"] = "far"
    named = found(service(runtime="far"), [same], [FAR])
    assert named == Runtime("registry:5000/vllm:v0.31.0", "the ServingRuntime far")
    absent = found(service(runtime="other"), [NEAR], [FAR])
    assert absent == Runtime(None, "there is no runtime other")


@pytest.mark.parametrize("field", ["servingRuntimeName", "clusterServingRuntimeName"])
def test_the_runtime_that_kserve_has_chosen(field: str) -> None:
    document = service() | {"status": {field: "far"}}
    others = [runtime("first", "vllm:v0.1.0"), FAR]
    assert found(document, [], others).image == "vllm/vllm-openai:v0.32.0"


def test_the_only_runtime_that_kserve_may_choose() -> None:
    assert found(service(), [NEAR], [FAR]).source == "the ServingRuntime near"
    unfit = [
        runtime("off", "a:v1.0.0", disabled=True),
        runtime("mesh", "a:v1.0.0", multiModel=True),
        runtime("multinode", "a:v1.0.0", workerSpec={}),
        runtime("asked", "a:v1.0.0", supportedModelFormats=[{"name": "vLLM"}]),
        runtime("onnx", "a:v1.0.0", supportedModelFormats=[{"name": "onnx", "autoSelect": True}]),
    ]
    assert found(service(), unfit, [*unfit, FAR]).source == "the ClusterServingRuntime far"
    none = found(service(), unfit, [])
    assert none == Runtime(None, "no runtime is chosen for vLLM")
    several = found(service(), [], [FAR, runtime("away", "b:v1.0.0")])
    assert several == Runtime(None, "KServe may choose any of the runtimes away, far")


def test_a_runtime_without_an_image() -> None:
    assert found(service(), [runtime("bare", None)]) == Runtime(
        None, "the ClusterServingRuntime bare names no image for kserve-container"
    )


@pytest.mark.parametrize(
    ("image", "tagged"),
    [
        ("registry:5000/vllm:v0.31.0", "registry:5000/vllm:v0.33.0"),
        ("registry:5000/vllm", "registry:5000/vllm:v0.33.0"),
        ("vllm@sha256:77ab", "vllm:v0.33.0"),
    ],
)
def test_a_tag_that_the_service_asks_for(image: str, tagged: str) -> None:
    document = service(runtimeVersion="v0.33.0")
    assert found(document, [runtime("one", image)]).image == tagged


def test_an_overlay_does_not_show_what_else_may_be_chosen() -> None:
    unnamed = found(service(), [NEAR], complete=False)
    assert unnamed == Runtime(None, "the InferenceService names neither an image nor a runtime")
    assert found(service(runtime="near"), [NEAR], complete=False).image
    absent = found(service(runtime="far"), [NEAR], complete=False)
    assert absent == Runtime(None, "there is no runtime far in the overlay")


def test_other_kinds_have_no_runtime() -> None:
    document = service("LLMInferenceService")
    del document["spec"]["template"]
    assert found(document, [FAR]) == Runtime(None, "the LLMInferenceService names no image")
