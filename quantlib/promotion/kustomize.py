"""Kustomizations, as far as they decide what a service is: resources, components and patches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from quantlib.errors import InvalidInputError
from quantlib.promotion.merging import Document, merged

_NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_PATCHES = ("patchesStrategicMerge", "patches", "patchesJson6902")
"""Where a kustomization names patches, in the order in which kustomize applies them."""


@dataclass(frozen=True)
class Kustomization:
    """The content of a kustomization's file, the resources that it names, and their namespace."""

    path: Path
    settings: Document
    documents: tuple[Document, ...]
    namespace: str | None

    def patches(self) -> Iterator[Patch]:
        """The patches that it names."""
        for key in _PATCHES:
            for entry in self.settings.get(key) or ():
                said = entry if isinstance(entry, dict) else {"path": entry}
                text, path = str(said.get("patch") or said.get("path") or ""), None
                # A patch may also stand in place of its file's name.
                if not set(text) & set("\n{[") and (self.path.parent / text).is_file():
                    path = (self.path.parent / text).resolve()
                    text = path.read_text(encoding="utf-8", errors="replace")
                yield Patch(key, path, said.get("target") or {}, text)


@dataclass(frozen=True)
class Patch:
    """A patch that a kustomization names: a document to merge, or operations of JSON Patch.

    ``path`` is its file, where it has one; ``target`` what it is for, where it does not say so.
    """

    key: str
    path: Path | None
    target: Document
    text: str

    def applied(self, document: Document) -> Document:
        """What it makes of a document; InvalidInputError where it cannot be understood."""
        try:
            for patch in yaml.safe_load_all(self.text):
                if not self._is_for(document, patch):
                    continue
                if isinstance(patch, list):
                    document = _operated(document, patch)
                else:
                    document = merged(document, patch, by_name=document["kind"] == "Deployment")
        except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
            where = self.path.name if self.path else self.key
            what = f"is a patch that cannot be understood: {error!r}"
            raise InvalidInputError.one(where, what) from None
        return document

    def _is_for(self, document: Document, patch: Any) -> bool:
        named = document["kind"], document["metadata"]["name"]
        if self.target:
            wanted = self.target.get("kind"), self.target.get("name")
            pairs = zip(wanted, named, strict=True)
            return all(re.fullmatch(one, other) for one, other in pairs if one)
        if not isinstance(patch, dict) or not isinstance(patch.get("metadata"), dict):
            return False
        return (patch.get("kind"), patch["metadata"].get("name")) == named


def followed(
    folder: Path, root: Path, outer: str | None = None, above: tuple[Path, ...] = ()
) -> Iterator[Kustomization]:
    """The kustomizations that a folder's rests on, as patches are applied, then itself.

    Those in the repository; none where the folder holds none. InvalidInputError where one cannot be
    read, or rests on itself. ``outer`` is the namespace that those ``above`` say.
    """
    path = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if path is None:
        return
    if path in above:
        raise InvalidInputError.one(_shown(path), "rests on itself")
    settings = settings_of(path)
    namespace = outer or settings.get("namespace")
    found: list[Any] = []
    for name in (*(settings.get("resources") or ()), *(settings.get("components") or ())):
        inner = (folder / name).resolve()
        if inner.is_relative_to(root) and inner.is_dir():
            yield from followed(inner, root, namespace, (*above, path))
        elif inner.is_relative_to(root) and inner.is_file():
            found += _loaded(inner)
    resources = (each for each in found if isinstance(each, dict))
    named = tuple(each for each in resources if isinstance(each.get("metadata"), dict))
    yield Kustomization(path, settings, named, namespace)


def settings_of(path: Path) -> Document:
    """What a kustomization says; InvalidInputError where it is none."""
    documents = _loaded(path)
    settings = documents[0] if documents and documents[0] is not None else {}
    lists = ("resources", "components", *_PATCHES)
    if (
        len(documents) > 1
        or not isinstance(settings, dict)
        or not all(isinstance(settings.get(key) or [], list) for key in lists)
        or not all(isinstance(each, str) for key in lists[:2] for each in settings.get(key) or ())
    ):
        raise InvalidInputError.one(_shown(path), "is not what kustomize reads")
    return settings


def _loaded(path: Path) -> list[Any]:
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError.one(_shown(path), f"is not YAML: {error}") from None


def _shown(path: Path) -> str:
    """A file as messages name it: the clone that it is in is gone when they are read."""
    return f"{path.parent.name}/{path.name}"


def _operated(document: Document, operations: list[Document]) -> Document:
    """A document after operations of JSON Patch."""
    changed = deepcopy(document)
    for each in operations:
        words = [w.replace("~1", "/").replace("~0", "~") for w in each["path"].split("/")[1:]]
        parent: Any = changed
        for word in words[:-1]:
            parent = parent[int(word) if isinstance(parent, list) else word]
        in_list, last = isinstance(parent, list), words[-1]
        match each["op"]:
            case "add" if in_list:
                parent.insert(len(parent) if last == "-" else int(last), each["value"])
            case "add" | "replace":
                parent[int(last) if in_list else last] = each["value"]
            case "remove":
                del parent[int(last) if in_list else last]
            case "test":
                pass
            case other:
                raise ValueError(f"the operation {other}")
    return changed
