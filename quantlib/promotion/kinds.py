"""The kinds of objects that serve a model with vLLM: how each says what it serves.

An InferenceService holds URI and arguments in its predictor's model; an LLMInferenceService the
URI in ``spec.model`` and the arguments in a variable of its container ``main``; a Deployment both
in the arguments of its container.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from quantlib.errors import InvalidInputError
from quantlib.promotion.merging import Document, annotations_of, merged
from quantlib.promotion.state import DESCRIBING, State, without

MODEL_FORMAT = "vLLM"
_VARIABLE = "VLLM_ADDITIONAL_ARGS"
_MOUNT = "/mnt/models"


@dataclass(frozen=True)
class Kind:
    """A kind of object, and how to read and change what it serves.

    Attributes:
        name: As ``kind`` of a document.
        api_versions: As ``apiVersion``; the one to prefer first. All have the fields that we use.
        plural: In the paths of the API.
        pod: Path of the fields in a document that say what else its pods have.
        read: What a document says is served, without annotations.
        write: The ``spec`` to lay over a document so that it serves a state.
        image: The image that runs vLLM, where the document names one.
    """

    name: str
    api_versions: tuple[str, ...]
    plural: str
    pod: tuple[str, ...]
    read: Callable[[Document], State]
    write: Callable[[Document, State], Document]
    image: Callable[[Document], str | None]

    def state(self, document: Document) -> State:
        """What a document says is served.

        Raises:
            InvalidInputError: It serves no model in a way that can be read.
        """
        try:
            noted = {k: v for k, v in annotations_of(document).items() if k in DESCRIBING}
            read = self.read(document)
            if not all(isinstance(word, str) for word in read.arguments):
                raise TypeError("an argument that is no string")
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            what = f"is written in a way that is not understood: {error!r}"
            raise _refused(document, what) from None
        return State(read.uri, read.arguments, noted)

    def patch(self, document: Document, state: State) -> Document:
        """The least document that makes ``document`` serve a state when laid over it.

        Null removes a field.
        """
        given = document["metadata"]
        metadata: Document = {k: given[k] for k in ("name", "namespace") if k in given}
        ended = {name: None for name in annotations_of(document) if name in DESCRIBING}
        metadata["annotations"] = ended | dict(state.annotations)
        return {
            "apiVersion": document["apiVersion"],
            "kind": self.name,
            "metadata": metadata,
            "spec": self.write(document, state),
        }

    def changed(self, document: Document, state: State) -> Document:
        """A document that serves a state, and is otherwise as it was."""
        patch = self.patch(document, state)
        changed: Document = merged(document, patch, by_name=self.name == "Deployment")
        return changed


def pod_of(document: Document) -> Document:
    """What a service says of its pods: a part of the document, added where it says nothing."""
    part = document
    for name in KINDS[document["kind"]].pod:
        if part.get(name) is None:
            part[name] = {}
        part = part[name]
    return part


def _refused(document: Document, what: str, remedy: str = "") -> InvalidInputError:
    name = document["metadata"].get("name")
    return InvalidInputError.one(f"{document.get('kind')} {name}", what, remedy)


def _require_alone(document: Document, field: str, found: Any) -> None:
    """Workers have arguments and a copy of the model of their own."""
    if found is not None:
        raise _refused(
            document,
            f"{field}: a model that is served by several pods together cannot be promoted",
            "change what it serves by hand",
        )


def _require_no_model(document: Document, words: Sequence[str]) -> None:
    """KServe tells vLLM where the model is; arguments that name another one win over that."""
    for word, following in pairwise((*words, "")):
        name, _, value = word.partition("=")
        if name == "--model" and not (value or following).startswith(_MOUNT):
            raise _refused(
                document,
                f"its arguments name a model, {value or following}, which is served whatever "
                "the URI says",
                "take it out first",
            )


def _container(document: Document, template: Document, name: str) -> Document:
    containers = (template.get("spec") or template).get("containers") or []
    named = [each for each in containers if each["name"] == name]
    if not named and len(containers) == 1:
        named = containers
    if not named:
        what = f"none of its {len(containers)} containers is called {name}"
        raise _refused(document, what, "call the one that runs vLLM so")
    return named[0]


def _model(document: Document) -> Document:
    predictor = document["spec"].get("predictor", {})
    model = predictor.get("model") or {}
    found = (model.get("modelFormat") or {}).get("name")
    if (found or "").lower() != MODEL_FORMAT.lower():
        raise _refused(
            document,
            f"spec.predictor.model.modelFormat.name is {found}, not {MODEL_FORMAT}",
            "let it be served by the runtime kserve-vllmserver first",
        )
    for field, holder in (("storage", model), ("storageUris", model), ("storageUris", predictor)):
        if holder.get(field):
            where = "model." if holder is model else ""
            raise _refused(
                document,
                f"spec.predictor.{where}{field} says what it serves",
                "name the model with spec.predictor.model.storageUri, which promotion changes",
            )
    _require_alone(document, "spec.predictor.workerSpec", predictor.get("workerSpec"))
    return model


def _read_inference_service(document: Document) -> State:
    model = _model(document)
    words = tuple(model.get("args") or ())
    _require_no_model(document, words)
    return State(model.get("storageUri"), words)


def _write_inference_service(document: Document, state: State) -> Document:
    before = _model(document)
    given = {"storageUri": state.uri, "args": list(state.arguments) or None}
    ours = {name: value for name, value in given.items() if value is not None or name in before}
    return {"predictor": {"model": {"modelFormat": before["modelFormat"]} | ours}}


def _main(document: Document) -> Document:
    for field in ("worker", "prefill"):
        _require_alone(document, f"spec.{field}", document["spec"].get(field))
    template = document["spec"].get("template") or {}
    return _container(document, template, "main") if template.get("containers") else {}


def _read_llm_inference_service(document: Document) -> State:
    variables = {each["name"]: each for each in _main(document).get("env") or ()}
    variable = variables.get(_VARIABLE, {})
    if "valueFrom" in variable:
        what = f"the value of {_VARIABLE} comes from elsewhere"
        raise _refused(document, what, "write it in the container's env")
    words = shlex.split(variable.get("value", ""))
    _require_no_model(document, words)
    return State((document["spec"].get("model") or {}).get("uri"), tuple(words))


def _write_llm_inference_service(document: Document, state: State) -> Document:
    spec: Document = {"model": {"uri": state.uri}}
    if "name" in document["spec"].get("model", {}):
        spec["model"]["name"] = document["spec"]["model"]["name"]
    # Lists of custom resources are replaced as a whole where kustomize merges them.
    containers = deepcopy((document["spec"].get("template") or {}).get("containers") or [])
    main = _main(document).get("name", "main")
    if not containers and state.arguments:
        containers = [{"name": main}]
    for container in containers:
        if container["name"] == main:
            others = [each for each in container.get("env") or () if each["name"] != _VARIABLE]
            ours = [{"name": _VARIABLE, "value": shlex.join(state.arguments)}]
            container["env"] = others + (ours if state.arguments else [])
    if containers:
        spec["template"] = {"containers": containers}
    return spec


def _vllm(document: Document) -> Document:
    container = _container(document, document["spec"]["template"], "vllm")
    command = container.get("command") or []
    # A script for a shell, a model, or options would all stay where we only change `args`.
    if any(len(word.split()) > 1 or word.startswith("--") for word in command) or (
        "serve" in command[:-1]
    ):
        raise _refused(
            document,
            f"the command of its container {container['name']} is more than what starts vLLM: "
            f"{shlex.join(command)}",
            "move the model and the options to args",
        )
    return container


def _read_deployment(document: Document) -> State:
    container = _vllm(document)
    words: list[str] = []
    for word in (container.get("args") or [])[len(_command(container)) :]:
        words += word.split("=", 1) if word.startswith("--model=") else [word]
    if "--model" in words[:-1]:
        uri = words[words.index("--model") + 1]
        return State(uri, tuple(without(words, ["model"])))
    # A line for a shell is one word with spaces.
    if not words or words[0].startswith("-") or len(words[0].split()) > 1:
        raise _refused(
            document,
            f"args of its container {container['name']} do not name the model",
            "name it there, first or after --model, and not in command or in a line for a shell",
        )
    return State(words[0], tuple(words[1:]))


def _command(container: Document) -> list[str]:
    """The command of vLLM, where the arguments begin with it."""
    return ["serve"] if (container.get("args") or [])[:1] == ["serve"] else []


def _write_deployment(document: Document, state: State) -> Document:
    container = _vllm(document)
    model = [] if state.uri is None else [state.uri]
    # vLLM's server module takes the model as an option, its command `vllm serve` by position.
    if model and any(word.partition("=")[0] == "--model" for word in container.get("args") or ()):
        model = ["--model", *model]
    words = [*_command(container), *model, *state.arguments]
    changed = {"name": container["name"], "args": words}
    return {"template": {"spec": {"containers": [changed]}}}


_KINDS = (
    Kind(
        "InferenceService",
        ("serving.kserve.io/v1beta1",),
        "inferenceservices",
        ("spec", "predictor"),
        _read_inference_service,
        _write_inference_service,
        lambda document: _model(document).get("image"),
    ),
    Kind(
        "LLMInferenceService",
        ("serving.kserve.io/v1alpha2", "serving.kserve.io/v1alpha1"),
        "llminferenceservices",
        ("spec", "template"),
        _read_llm_inference_service,
        _write_llm_inference_service,
        lambda document: _main(document).get("image"),
    ),
    Kind(
        "Deployment",
        ("apps/v1",),
        "deployments",
        ("spec", "template", "spec"),
        _read_deployment,
        _write_deployment,
        lambda document: _vllm(document).get("image"),
    ),
)
KINDS = {kind.name: kind for kind in _KINDS}
