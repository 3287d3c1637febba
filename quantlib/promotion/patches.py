"""The patches of a kustomization, and what they make of a document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from quantlib.errors import InvalidInputError
from quantlib.promotion.kinds import Document
from quantlib.promotion.merging import merged

PATCHES = ("patchesStrategicMerge", "patches", "patchesJson6902")
"""Where a kustomization names patches, in the order in which kustomize applies them."""


@dataclass(frozen=True)
class Patch:
    """A patch.

    Attributes:
        key: Where the kustomization names it.
        path: Its file; None where it is written in the kustomization.
        target: What it is for; empty where the patch itself says that.
        text: A document to merge, or operations of JSON Patch.
    """

    key: str
    path: Path | None
    target: Document
    text: str

    def applied(self, document: Document) -> Document:
        """What it makes of a document.

        Raises:
            InvalidInputError: It is for the document, and cannot be understood.
        """
        where = str(self.path.name if self.path else self.key)
        try:
            for patch in yaml.safe_load_all(self.text):
                if self._is_for(document, patch):
                    if isinstance(patch, list):
                        document = _operated(document, patch)
                    else:
                        by_name = document["kind"] == "Deployment"
                        document = merged(document, patch, by_name=by_name)
        except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InvalidInputError.one(
                where, f"is a patch that cannot be understood: {error!r}"
            ) from None
        return document

    def _is_for(self, document: Document, patch: Any) -> bool:
        metadata = document["metadata"]
        if self.target:
            kind, name = self.target.get("kind"), self.target.get("name")
            return all(
                re.fullmatch(wanted, actual)
                for wanted, actual in ((kind, document["kind"]), (name, metadata["name"]))
                if wanted
            )
        if not isinstance(patch, dict) or not isinstance(patch.get("metadata"), dict):
            return False
        named = patch.get("kind"), patch["metadata"].get("name")
        return named == (document["kind"], metadata["name"])


def patches_of(folder: Path, settings: Document) -> Iterator[Patch]:
    """The patches that a kustomization names.

    Args:
        folder: Of the kustomization.
        settings: Its content.
    """
    for key in PATCHES:
        for entry in settings.get(key) or ():
            said = entry if isinstance(entry, dict) else {"path": entry}
            text, path = str(said.get("patch") or said.get("path") or ""), None
            # A patch may also stand in place of its file's name.
            if not set(text) & set("\n{[") and (folder / text).is_file():
                path = (folder / text).resolve()
                text = path.read_text(encoding="utf-8", errors="replace")
            yield Patch(key, path, said.get("target") or {}, text)


def _operated(document: Document, operations: list[Document]) -> Document:
    """A document after operations of JSON Patch."""
    changed = deepcopy(document)
    for each in operations:
        words = [w.replace("~1", "/").replace("~0", "~") for w in each["path"].split("/")[1:]]
        parent: Any = changed
        for word in words[:-1]:
            parent = parent[int(word) if isinstance(parent, list) else word]
        _operate(parent, words[-1], each)
    return changed


def _operate(parent: Any, last: str, operation: Document) -> None:
    in_list = isinstance(parent, list)
    match operation["op"]:
        case "add" if in_list:
            parent.insert(len(parent) if last == "-" else int(last), operation["value"])
        case "add" | "replace":
            parent[int(last) if in_list else last] = operation["value"]
        case "remove":
            del parent[int(last) if in_list else last]
        case "test":
            pass
        case other:
            raise ValueError(f"the operation {other}")
