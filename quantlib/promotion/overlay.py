"""A kustomize overlay: the service that it holds, and a patch of ours over it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from quantlib.errors import InvalidInputError
from quantlib.promotion.kinds import KINDS, Document, Kind
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
        base: The service as the overlay's resources have it, without patches.
        runtimes: KServe's runtimes among the resources.
        image_setter: What in the kustomizations may set another image than the resources have.
    """

    folder: Path
    kustomization: Path
    kind: Kind
    base: Document
    runtimes: tuple[Document, ...] = ()
    image_setter: str | None = None

    @property
    def patch_path(self) -> Path:
        """Where the patch is."""
        return self.folder / f"promoted-{self.base['metadata']['name']}.yaml"

    def current(self) -> State:
        """What the overlay serves: the patch's state, or that of the resources without one."""
        return self.kind.state(self._patched())

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

    def _patched(self) -> Document:
        if not self.patch_path.exists():
            return self.base
        return _merged(self.base, _documents(self.patch_path)[0])

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
                following = lines[at + 1] if at + 1 < len(lines) else ""
                indent = following[: len(following) - len(following.lstrip())]
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
        if yaml.safe_load(changed) != after:
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
        document
        for inner, said in followed
        for file in _named_paths(inner, said, root.resolve())
        if file.is_file()
        for document in _documents(file)
    ]
    found = [
        document
        for document in resources
        if document.get("kind") in KINDS and document["metadata"].get("name") == service
    ]
    if len(found) != 1:
        raise InvalidInputError.one(
            f"--service {service}",
            f"{len(found) or 'no'} resources of {path} are {', '.join(KINDS)} of this name",
            "add the service there first" if not found else "a name must be of one of them",
        )
    (document,) = found
    actual = _settings(kustomization).get("namespace") or document["metadata"].get("namespace")
    if actual not in (None, namespace):
        raise InvalidInputError.one(
            f"--namespace {namespace}", f"{path} puts {service} into {actual}"
        )
    runtimes = tuple(each for each in resources if each.get("kind") in RUNTIMES)
    setters = (_image_setter(inner, said) for inner, said in followed)
    setter = next(filter(None, setters), None)
    return Overlay(folder, kustomization, KINDS[document["kind"]], document, runtimes, setter)


def _kustomization(folder: Path) -> Path | None:
    return next((folder / name for name in _NAMES if (folder / name).is_file()), None)


def _followed(kustomization: Path, root: Path) -> Iterator[tuple[Path, Document]]:
    """The folders of a kustomization and of those that it rests on, with what they say."""
    settings = _settings(kustomization)
    yield kustomization.parent, settings
    for path in _named_paths(kustomization.parent, settings, root):
        if path.is_dir() and (inner := _kustomization(path)) is not None:
            yield from _followed(inner, root)


def _named_paths(folder: Path, settings: Document, root: Path) -> list[Path]:
    names = [*(settings.get("resources") or ()), *(settings.get("components") or ())]
    paths = [(folder / name).resolve() for name in names]
    return [path for path in paths if path.is_relative_to(root)]


def _image_setter(folder: Path, settings: Document) -> str | None:
    """What in a kustomization may set another image than the resources have; None if nothing."""
    if settings.get("images"):
        return "images"
    for key in ("patches", "patchesStrategicMerge", "patchesJson6902"):
        for entry in settings.get(key) or ():
            text = str(entry)
            name = entry.get("path") if isinstance(entry, dict) else entry
            # A patch may also stand in place of its file's name.
            if name and not set(name) & set("\n{[") and (folder / name).is_file():
                text = (folder / name).read_text(encoding="utf-8")
            if "image" in text and not text.startswith(_HEADER):
                return key
    return None


def _settings(kustomization: Path) -> Document:
    settings = next(iter(_loaded(kustomization)), None) or {}
    if not isinstance(settings, dict):
        raise InvalidInputError.one(kustomization.name, "is no mapping")
    return settings


def _documents(path: Path) -> list[Document]:
    loaded = [each for each in _loaded(path) if isinstance(each, dict)]
    return [each for each in loaded if isinstance(each.get("metadata"), dict)]


def _loaded(path: Path) -> list[Any]:
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError.one(path.name, f"is not YAML: {error}") from None


def _merged(base: Any, patch: Any) -> Any:
    """One of our patches laid over a document; a list of named things is merged by their names."""
    if isinstance(base, dict) and isinstance(patch, dict):
        merged = {key: _merged(base.get(key), value) for key, value in patch.items()}
        return deepcopy(base) | merged
    if _named(base) and _named(patch):
        laid = {each["name"]: each for each in patch}
        known = {each["name"] for each in base}
        first = [_merged(each, laid.get(each["name"], {})) for each in base]
        return first + [each for each in patch if each["name"] not in known]
    return deepcopy(patch)


def _named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, dict) and "name" in v for v in value)
