"""Which image runs vLLM for a service: its own, or that of the KServe runtime that it uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from quantlib.errors import Problem
from quantlib.promotion.kinds import MODEL_FORMAT, Kind
from quantlib.promotion.merging import Document

RUNTIMES = ("ServingRuntime", "ClusterServingRuntime")
"""KServe looks for a runtime in the service's namespace first."""

_CONTAINER = "kserve-container"


@dataclass(frozen=True)
class Runtime:
    """The image that runs vLLM, if it is known, and what names it, or why it is not known."""

    image: str | None
    source: str


def runtime_of(
    kind: Kind, document: Document, levels: Iterable[list[Document]], *, complete: bool
) -> Runtime:
    """The image that runs vLLM.

    A runtime that is not named is known where KServe's selection has one choice only. ``levels``
    are the runtimes of the service's namespace, then those of the cluster, asked for as needed;
    ``complete`` is whether these are all that KServe may choose from.
    """
    if image := kind.image(document):
        return Runtime(_tagged(image, document), f"the {kind.name}")
    if kind.name != "InferenceService":
        return Runtime(None, f"the {kind.name} names no image")
    status = document.get("status") or {}
    chosen = status.get("servingRuntimeName") or status.get("clusterServingRuntimeName")
    name = _model(document).get("runtime") or chosen
    if name is None and not complete:
        return Runtime(None, "the InferenceService names neither an image nor a runtime")
    for level in levels:
        fit = [each for each in level if _fits(each, document, name)]
        if len(fit) > 1:
            names = ", ".join(sorted(each["metadata"]["name"] for each in fit))
            return Runtime(None, f"KServe may choose any of the runtimes {names}")
        for runtime in fit:
            source = f"the {runtime['kind']} {runtime['metadata']['name']}"
            for container in runtime["spec"].get("containers") or ():
                if container["name"] == _CONTAINER and container.get("image"):
                    return Runtime(_tagged(container["image"], document), source)
            return Runtime(None, f"{source} names no image for {_CONTAINER}")
    missing = f"there is no runtime {name}" if name else f"no runtime is chosen for {MODEL_FORMAT}"
    return Runtime(None, missing if complete else f"{missing} in the overlay")


def runtime_problems(document: Document, levels: Iterable[list[Document]]) -> Iterator[Problem]:
    """That KServe has no runtime of the name that an InferenceService asks for."""
    name = _model(document).get("runtime")
    known = {each["metadata"]["name"] for level in levels for each in level}
    if document["kind"] == "InferenceService" and name not in {None, *known}:
        yield Problem(
            f"InferenceService {document['metadata']['name']}",
            f"asks for the runtime {name}, which there is not",
            f"there are: {', '.join(sorted(known)) or 'none'}",
        )


def _fits(runtime: Document, document: Document, name: str | None) -> bool:
    if name is not None:
        return bool(runtime["metadata"]["name"] == name)
    spec = runtime["spec"]
    formats = spec.get("supportedModelFormats") or ()
    beyond = any(spec.get(each) for each in ("disabled", "multiModel")) or "workerSpec" in spec
    named = (each["name"] for each in formats if each.get("autoSelect"))
    return not beyond and MODEL_FORMAT.lower() in map(str.lower, named)


def _tagged(image: str, document: Document) -> str:
    """The image with the tag that the service asks for, if it does."""
    version = _model(document).get("runtimeVersion")
    if version is None:
        return image
    folder, slash, name = image.partition("@")[0].rpartition("/")
    return f"{folder}{slash}{name.partition(':')[0]}:{version}"


def _model(document: Document) -> Document:
    model: Document = (document["spec"].get("predictor") or {}).get("model") or {}
    return model
