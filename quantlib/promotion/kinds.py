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
from quantlib.promotion.merging import Document, annotations_of
from quantlib.promotion.state import DESCRIBING, State, without

MODEL_FORMAT = "vLLM"
_VARIABLE = "VLLM_ADDITIONAL_ARGS"
_MOUNT = "/mnt/models"

_BY_OTHERS = (
    "says what it serves",
    "name the model with spec.predictor.model.storageUri, which promotion changes",
)
_BY_SEVERAL = (
    "is of a model that is served by several pods together, which cannot be promoted",
    "change what it serves by hand",
)
_OUT_OF_REACH = {
    "spec.predictor.model.storage": _BY_OTHERS,
    "spec.predictor.model.storageUris": _BY_OTHERS,
    "spec.predictor.storageUris": _BY_OTHERS,
    "spec.predictor.workerSpec": _BY_SEVERAL,
    "spec.worker": _BY_SEVERAL,
    "spec.prefill": _BY_SEVERAL,
}
"""Fields that decide what is served beside those that promotion changes."""


@dataclass(frozen=True)
class Kind:
    """A kind of object, and how to read and change what it serves.

    Attributes:
        name: As ``kind`` of a document.
        api_versions: As ``apiVersion``; the one to prefer first. All have the fields that we use.
        plural: In the paths of the API.
        pod: Path of the fields in a document that say what else its pods have.
        vllm: The part of a document that says how vLLM is run, its image among others.
        read: The URI that a document has, and the words for vLLM's server.
        write: Gives a document others.
    """

    name: str
    api_versions: tuple[str, ...]
    plural: str
    pod: tuple[str, ...]
    vllm: Callable[[Document], Document]
    read: Callable[[Document], tuple[str | None, list[str]]]
    write: Callable[[Document, str | None, list[str]], None]

    def state(self, document: Document) -> State:
        """What a document says is served.

        Raises:
            InvalidInputError: It serves no model in a way that can be read.
        """
        try:
            for path, (what, remedy) in _OUT_OF_REACH.items():
                if _at(document, path) not in (None, []):
                    raise _refused(document, f"{path} {what}", remedy)
            uri, words = self.read(deepcopy(document))
            if not all(isinstance(word, str) for word in words):
                raise TypeError("an argument that is no string")
            if self.name != "Deployment":
                _require_no_model(document, words)
            noted = {k: v for k, v in annotations_of(document).items() if k in DESCRIBING}
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            what = f"is written in a way that is not understood: {error!r}"
            raise _refused(document, what) from None
        return State(uri, tuple(words), noted)

    def changed(self, document: Document, state: State) -> Document:
        """A document that serves a state, and is otherwise as it was."""
        changed = deepcopy(document)
        self.write(changed, state.uri, list(state.arguments))
        others = {k: v for k, v in annotations_of(document).items() if k not in DESCRIBING}
        changed["metadata"]["annotations"] = others | dict(state.annotations)
        return changed

    def image(self, document: Document) -> str | None:
        """The image that runs vLLM, where the document names one."""
        return self.vllm(deepcopy(document)).get("image")


def pod_of(document: Document) -> Document:
    """What a service says of its pods: a part of the document, added where it says nothing."""
    part = document
    for name in KINDS[document["kind"]].pod:
        if part.get(name) is None:
            part[name] = {}
        part = part[name]
    return part


def _at(document: Document, path: str) -> Any:
    found: Any = document
    for name in path.split("."):
        found = None if found is None else found.get(name)
    return found


def _set(part: Document, **fields: Any) -> None:
    """Gives a part of a document these fields; what is empty is not there."""
    for name, value in fields.items():
        part.pop(name, None)
        if value:
            part[name] = value


def _refused(document: Document, what: str, remedy: str = "") -> InvalidInputError:
    name = document["metadata"].get("name")
    return InvalidInputError.one(f"{document.get('kind')} {name}", what, remedy)


def _require_no_model(document: Document, words: Sequence[str]) -> None:
    """KServe tells vLLM where the model is; arguments that name another one win over that."""
    for word, following in pairwise((*words, "")):
        name, _, value = word.partition("=")
        if name == "--model" and not (value or following).startswith(_MOUNT):
            what = (
                f"its arguments name a model, {value or following}, which is served whatever "
                "the URI says"
            )
            raise _refused(document, what, "take it out first")


def _container(document: Document, name: str) -> Document:
    containers: list[Document] = pod_of(document).get("containers") or []
    named = [each for each in containers if each["name"] == name]
    if not named and len(containers) == 1:
        named = containers
    if not named:
        what = f"none of its {len(containers)} containers is called {name}"
        raise _refused(document, what, "call the one that runs vLLM so")
    return named[0]


def _model(document: Document) -> Document:
    model: Document = _at(document["spec"], "predictor.model") or {}
    found = _at(model, "modelFormat.name")
    if (found or "").lower() != MODEL_FORMAT.lower():
        what = f"spec.predictor.model.modelFormat.name is {found}, not {MODEL_FORMAT}"
        remedy = "let it be served by the runtime kserve-vllmserver first"
        raise _refused(document, what, remedy)
    return model


def _read_inference_service(document: Document) -> tuple[str | None, list[str]]:
    model = _model(document)
    return model.get("storageUri"), model.get("args") or []


def _write_inference_service(document: Document, uri: str | None, words: list[str]) -> None:
    _set(_model(document), storageUri=uri, args=words)


def _main(document: Document) -> Document:
    """The container of an LLMInferenceService; one beside it, where KServe's own is taken."""
    has_one = pod_of(document).get("containers")
    return _container(document, "main") if has_one else {"name": "main"}


def _read_llm_inference_service(document: Document) -> tuple[str | None, list[str]]:
    variables = {each["name"]: each for each in _main(document).get("env") or ()}
    variable = variables.get(_VARIABLE, {})
    if "valueFrom" in variable:
        what = f"the value of {_VARIABLE} comes from elsewhere"
        raise _refused(document, what, "write it in the container's env")
    return _at(document, "spec.model.uri"), shlex.split(variable.get("value", ""))


def _write_llm_inference_service(document: Document, uri: str | None, words: list[str]) -> None:
    main, spec = _main(document), document["spec"]
    _set(spec, model={**(spec.get("model") or {}), "uri": uri})
    ours = [{"name": _VARIABLE, "value": shlex.join(words)}] if words else []
    others = [each for each in main.get("env") or () if each["name"] != _VARIABLE]
    _set(main, env=others + ours)
    if ours and not pod_of(document).get("containers"):
        pod_of(document)["containers"] = [main]


def _vllm(document: Document) -> Document:
    container = _container(document, "vllm")
    command = container.get("command") or []
    # A script for a shell, a model, or options would all stay where we only change `args`.
    if any(len(word.split()) > 1 or word.startswith("--") for word in command) or (
        "serve" in command[:-1]
    ):
        what = (
            f"the command of its container {container['name']} is more than what starts vLLM: "
            f"{shlex.join(command)}"
        )
        raise _refused(document, what, "move the model and the options to args")
    return container


def _read_deployment(document: Document) -> tuple[str | None, list[str]]:
    container = _vllm(document)
    words: list[str] = []
    for word in container.get("args") or ():
        words += word.split("=", 1) if word.startswith("--model=") else [word]
    del words[: words[:1] == ["serve"]]
    if "--model" in words[:-1]:
        return words[words.index("--model") + 1], without(words, ["model"])
    # A line for a shell is one word with spaces.
    if not words or words[0].startswith("-") or len(words[0].split()) > 1:
        what = f"args of its container {container['name']} do not name the model"
        remedy = (
            "name it there, first or after --model, and not in command or in a line for a shell"
        )
        raise _refused(document, what, remedy)
    return words[0], words[1:]


def _write_deployment(document: Document, uri: str | None, words: list[str]) -> None:
    container = _vllm(document)
    before = container.get("args") or []
    # vLLM's server module takes the model as an option, its command `vllm serve` by position.
    by_option = any(word.partition("=")[0] == "--model" for word in before)
    command = ["serve"] if before[:1] == ["serve"] else []
    container["args"] = [*command, *(["--model"] if by_option else []), str(uri), *words]


_KINDS = (
    Kind(
        "InferenceService",
        ("serving.kserve.io/v1beta1",),
        "inferenceservices",
        ("spec", "predictor"),
        _model,
        _read_inference_service,
        _write_inference_service,
    ),
    Kind(
        "LLMInferenceService",
        ("serving.kserve.io/v1alpha2", "serving.kserve.io/v1alpha1"),
        "llminferenceservices",
        ("spec", "template"),
        _main,
        _read_llm_inference_service,
        _write_llm_inference_service,
    ),
    Kind(
        "Deployment",
        ("apps/v1",),
        "deployments",
        ("spec", "template", "spec"),
        _vllm,
        _read_deployment,
        _write_deployment,
    ),
)
KINDS = {kind.name: kind for kind in _KINDS}
