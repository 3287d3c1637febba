"""A kustomize overlay: the service that it holds, and a patch of ours over it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from quantlib.errors import InvalidInputError
from quantlib.promotion.kinds import KINDS, Document, Kind
from quantlib.promotion.patches import PATCHES, Patch, patches_of
from quantlib.promotion.runtimes import RUNTIMES, Runtime, runtime_of
from quantlib.promotion.state import State

_NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_HEADER = "# Written by `quantlib promote`: what the service serves.\n"


@dataclass(frozen=True)
class Overlay:
    """An overlay that holds a service.

    Attributes:
        folder: Of the overlay.
        kustomization: Its file.
        kind: Of the service.
        base: The service as the overlay has it without our patch.
        served: The service as the overlay has it.
        runtimes: KServe's runtimes among the resources.
        image_setter: What in the kustomizations may set another image than the resources have.
    """

    folder: Path
    kustomization: Path
    kind: Kind
    base: Document
    served: Document
    runtimes: tuple[Document, ...] = ()
    image_setter: str | None = None

    @property
    def patch_path(self) -> Path:
        """Where the patch is."""
        return _patch_path(self.folder, self.base["metadata"]["name"])

    def current(self) -> State:
        """What the overlay serves."""
        return self.kind.state(self.served)

    def runtime(self) -> Runtime:
        """What would run vLLM, as far as the overlay says it."""
        if self.image_setter:
            return Runtime(None, f"`{self.image_setter}` of a kustomization may set the image")
        levels = ([each for each in self.runtimes if each["kind"] == kind] for kind in RUNTIMES)
        return runtime_of(self.kind, self.base, levels, complete=False)

    def lay(self, state: State) -> None:
        """Writes the patch, and names it in the kustomization.

        Raises:
            InvalidInputError: The kustomization is written in a way that no line can be added to.
        """
        patch = self.kind.patch(self.base, state)
        text = yaml.safe_dump(patch, sort_keys=False, width=1000)
        self.patch_path.write_text(_HEADER + text, encoding="utf-8")
        self._name_patch()

    def _name_patch(self) -> None:
        """Adds a line, so that comments and order of the file stay."""
        text = self.kustomization.read_text(encoding="utf-8")
        before = _settings(self.kustomization)
        entry = {"path": self.patch_path.name}
        if entry in (before.get("patches") or ()):
            return
        lines = text.splitlines()
        line = f"- path: {self.patch_path.name}"
        if "patches" in before:
            at = next((i for i, each in enumerate(lines) if each.rstrip() == "patches:"), None)
            if at is not None:
                entries = (each for each in lines[at + 1 :] if each.lstrip().startswith("-"))
                first = next(entries, "")
                indent = first[: len(first) - len(first.lstrip())]
                # Later patches win.
                end = next(
                    (
                        i
                        for i in range(at + 1, len(lines))
                        if lines[i].strip() and lines[i][0] not in " -#"
                    ),
                    len(lines),
                )
                lines.insert(end, indent + line)
        else:
            lines += ["patches:", line]
        changed = "\n".join(lines) + "\n"
        after = dict(before) | {"patches": [*(before.get("patches") or ()), entry]}
        if not _holds(changed, after):
            raise InvalidInputError.one(
                self.kustomization.name,
                "its patches are written in a way that no line can be added to",
                f"add `{line}` to them yourself, then run the same command again",
            )
        self.kustomization.write_text(changed, encoding="utf-8")


def find_overlay(root: Path, path: str, service: str, namespace: str) -> Overlay:
    """The overlay in a repository, and the service in its resources.

    Resources that lie elsewhere than in the repository are not looked at.

    Args:
        root: Of the repository.
        path: Of the overlay within it.
        service: Name of the service.
        namespace: Which the service must be in, as far as the overlay says it.

    Raises:
        InvalidInputError: There is no such overlay, or no such service in it.
    """
    folder = (root / path).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise InvalidInputError.one(f"--overlay {path}", "is outside of the repository")
    kustomization = _kustomization(folder)
    if kustomization is None:
        raise InvalidInputError.one(
            f"--overlay {path}", "holds no kustomization.yaml", "give its path in the repository"
        )
    followed = list(_followed(kustomization, root.resolve()))
    resources = [
        (document, each.namespace)
        for each in followed
        for file in _named_paths(each.folder, each.settings, root.resolve())
        if file.is_file()
        for document in _documents(file)
    ]
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
        raise InvalidInputError.one(
            f"--namespace {namespace}", f"{path} puts {service} into {actual}"
        )
    base = served = document
    for patch in (each for inner in followed for each in inner.patches):
        served = patch.applied(served)
        if patch.path != _patch_path(folder, service):
            base = patch.applied(base)
    runtimes = tuple(each for each, _ in resources if each.get("kind") in RUNTIMES)
    setter = next(filter(None, map(_image_setter, followed)), None)
    return Overlay(folder, kustomization, kind, base, served, runtimes, setter)


@dataclass(frozen=True)
class _Kustomization:
    """A kustomization that belongs to the overlay.

    Attributes:
        folder: Its own.
        settings: Its content.
        namespace: Which its resources end in; None where the resources say it.
    """

    folder: Path
    settings: Document
    namespace: str | None

    @property
    def patches(self) -> list[Patch]:
        """The patches that it names."""
        return list(patches_of(self.folder, self.settings))


def _patch_path(folder: Path, service: str) -> Path:
    return folder / f"promoted-{service}.yaml"


def _kustomization(folder: Path) -> Path | None:
    return next((folder / name for name in _NAMES if (folder / name).is_file()), None)


def _followed(
    kustomization: Path, root: Path, outer: str | None = None, above: tuple[Path, ...] = ()
) -> Iterator[_Kustomization]:
    """Those that a kustomization rests on, then itself: the order in which patches are applied."""
    if kustomization in above:
        raise InvalidInputError.one(_shown(kustomization), "rests on itself")
    settings = _settings(kustomization)
    namespace = outer or settings.get("namespace")
    for path in _named_paths(kustomization.parent, settings, root):
        if path.is_dir() and (inner := _kustomization(path)) is not None:
            yield from _followed(inner, root, namespace, (*above, kustomization))
    yield _Kustomization(kustomization.parent, settings, namespace)


def _settings(kustomization: Path) -> Document:
    """What a kustomization says.

    Raises:
        InvalidInputError: It is none.
    """
    documents = _loaded(kustomization)
    settings = documents[0] if documents and documents[0] is not None else {}
    lists = ("resources", "components", *PATCHES)
    if (
        len(documents) > 1
        or not isinstance(settings, dict)
        or not all(isinstance(settings.get(key) or [], list) for key in lists)
        or not all(isinstance(each, str) for key in lists[:2] for each in settings.get(key) or ())
    ):
        raise InvalidInputError.one(_shown(kustomization), "is not what kustomize reads")
    return settings


def _named_paths(folder: Path, settings: Document, root: Path) -> list[Path]:
    names = [*(settings.get("resources") or ()), *(settings.get("components") or ())]
    paths = [(folder / name).resolve() for name in names]
    return [path for path in paths if path.is_relative_to(root)]


def _image_setter(kustomization: _Kustomization) -> str | None:
    """What in a kustomization may set another image than the resources have; None if nothing."""
    if kustomization.settings.get("images"):
        return "images"
    for patch in kustomization.patches:
        if "image" in patch.text and not patch.text.startswith(_HEADER):
            return patch.key
    return None


def _documents(path: Path) -> list[Document]:
    return [
        each
        for each in _loaded(path)
        if isinstance(each, dict) and isinstance(each.get("metadata"), dict)
    ]


def _loaded(path: Path) -> list[Any]:
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError.one(_shown(path), f"is not YAML: {error}") from None


def _holds(text: str, settings: Document) -> bool:
    try:
        return bool(yaml.safe_load(text) == settings)
    except yaml.YAMLError:
        return False


def _shown(path: Path) -> str:
    """A file as messages name it: the clone that it is in is gone when they are read."""
    return f"{path.parent.name}/{path.name}"
