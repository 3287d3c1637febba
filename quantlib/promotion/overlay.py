"""A kustomize overlay: the service that it holds, and a patch of ours over it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import yaml

from quantlib.errors import InvalidInputError
from quantlib.promotion.kinds import KINDS, Kind
from quantlib.promotion.kustomize import Kustomization, followed, settings_of
from quantlib.promotion.merging import Document, difference
from quantlib.promotion.runtimes import RUNTIMES, Runtime, runtime_of
from quantlib.promotion.state import State

_HEADER = "# Written by `quantlib promote`: what the service serves.\n"


@dataclass(frozen=True)
class Overlay:
    """An overlay that holds a service: as it is without our patch, and as it is served with it.

    ``patch_path`` is where our patch is, or will be; ``image_setter`` what in the kustomizations
    may set another image than the resources have.
    """

    kustomization: Path
    patch_path: Path
    kind: Kind
    base: Document
    served: Document
    runtimes: list[Document]
    image_setter: str | None

    def current(self) -> State:
        """What the overlay serves."""
        return self.kind.state(self.served)

    def runtime(self) -> Runtime:
        """What would run vLLM, as far as the overlay says it."""
        if self.image_setter:
            return Runtime(None, f"`{self.image_setter}` of a kustomization may set the image")
        levels = ([each for each in self.runtimes if each["kind"] == kind] for kind in RUNTIMES)
        return runtime_of(self.kind, self.base, levels, complete=False)

    def write_patch(self, state: State) -> None:
        """Writes the patch, and names it; InvalidInputError where no line can be added for that."""
        by_name, base = self.kind.name == "Deployment", self.base
        patch = difference(base, self.kind.changed(base, state), by_name=by_name)
        given = {k: v for k, v in base["metadata"].items() if k in ("name", "namespace")}
        patch["metadata"] = given | patch["metadata"]
        patch = {name: base[name] for name in ("apiVersion", "kind")} | patch
        text = yaml.safe_dump(patch, sort_keys=False, width=1000)
        self.patch_path.write_text(_HEADER + text, encoding="utf-8")
        self._name_patch()

    def _name_patch(self) -> None:
        """Adds a line, so that comments and order of the file stay."""
        settings, name = settings_of(self.kustomization), self.patch_path.name
        patches, entry = settings.get("patches") or [], {"path": name}
        if entry in patches:
            return
        lines = self.kustomization.read_text(encoding="utf-8").splitlines()
        line, stripped = f"- path: {name}", [each.rstrip() for each in lines]
        if "patches" not in settings:
            lines += ["patches:", line]
        elif "patches:" in stripped:
            begin = stripped.index("patches:") + 1
            block = [*takewhile(lambda each: not each or each[0] in " -#", stripped[begin:])]
            first = next((each for each in block if each.lstrip().startswith("-")), "")
            indent = first[: len(first) - len(first.lstrip())]
            # Later patches win.
            lines.insert(begin + len(block), indent + line)
        changed = "\n".join(lines) + "\n"
        with suppress(yaml.YAMLError):
            if yaml.safe_load(changed) == settings | {"patches": [*patches, entry]}:
                self.kustomization.write_text(changed, encoding="utf-8")
                return
        raise InvalidInputError.one(
            self.kustomization.name,
            "its patches are written in a way that no line can be added to",
            f"add `{line}` to them yourself, then run the same command again",
        )


def find_overlay(root: Path, path: str, service: str, namespace: str) -> Overlay:
    """The overlay at a path in a repository, and the service in its resources.

    Resources that lie elsewhere than in the repository are not looked at.

    Raises:
        InvalidInputError: There is no such overlay, or no such service in it, or it is in another
            namespace.
    """
    root, folder = root.resolve(), (root / path).resolve()
    where = f"--overlay {path}"
    if not folder.is_relative_to(root):
        raise InvalidInputError.one(where, "is outside of the repository")
    kustomizations = list(followed(folder, root))
    if not kustomizations:
        what = "holds no kustomization.yaml"
        raise InvalidInputError.one(where, what, "give its path in the repository")
    resources = [(each, layer.namespace) for layer in kustomizations for each in layer.documents]
    found = [
        (document, outer)
        for document, outer in resources
        if document.get("kind") in list(KINDS) and document["metadata"].get("name") == service
    ]
    if len(found) != 1:
        raise InvalidInputError.one(
            f"--service {service}",
            f"{len(found) or 'no'} resources of {path} are {', '.join(KINDS)} of this name",
            "add the service there first" if not found else "a name must be of one of them",
        )
    ((document, outer),) = found
    kind = KINDS[document["kind"]]
    if document.get("apiVersion") not in kind.api_versions:
        raise InvalidInputError.one(
            f"{kind.name} {service}",
            f"its apiVersion {document.get('apiVersion')} is not known",
            f"write it in {' or '.join(kind.api_versions)}",
        )
    actual = outer or document["metadata"].get("namespace")
    if actual not in (None, namespace):
        what = f"{path} puts {service} into {actual}"
        raise InvalidInputError.one(f"--namespace {namespace}", what)
    base = served = document
    ours = folder / f"promoted-{service}.yaml"
    for patch in (patch for each in kustomizations for patch in each.patches()):
        served = patch.applied(served)
        if patch.path != ours:
            base = patch.applied(base)
    runtimes = [each for each, _ in resources if each.get("kind") in RUNTIMES]
    setter = next(filter(None, map(_image_setter, kustomizations)), None)
    return Overlay(kustomizations[-1].path, ours, kind, base, served, runtimes, setter)


def _image_setter(kustomization: Kustomization) -> str | None:
    """What in a kustomization may set another image than the resources have; None if nothing."""
    if kustomization.settings.get("images"):
        return "images"
    for patch in kustomization.patches():
        if "image" in patch.text and not patch.text.startswith(_HEADER):
            return patch.key
    return None
