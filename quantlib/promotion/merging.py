"""Documents laid over each other, and what became of a document that was changed."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

Document = dict[str, Any]

_THEIRS = ("status", "apiVersion", "kind")
"""Not looked at: a server writes them, or may convert them."""

_COMPARED_METADATA = ("annotations", "labels", "finalizers", "ownerReferences")


def annotations_of(document: Document) -> dict[str, str]:
    """Its annotations; none where there is no object."""
    return (document.get("metadata") or {}).get("annotations") or {}


def merged(base: Any, patch: Any, *, by_name: bool) -> Any:
    """A patch laid over a document; null removes a field.

    ``by_name`` merges lists by their entries' names, as Kubernetes' own kinds do; else they are
    replaced.
    """
    if isinstance(patch, dict):
        base = base if isinstance(base, dict) else {}
        laid = {key: merged(base.get(key), value, by_name=by_name) for key, value in patch.items()}
        return {k: v for k, v in (deepcopy(base) | laid).items() if v is not None}
    if by_name and _named(base) and _named(patch):
        laid = {each["name"]: each for each in patch}
        known = {each["name"] for each in base}
        first = [merged(each, laid.get(each["name"], {}), by_name=by_name) for each in base]
        return first + [each for each in patch if each["name"] not in known]
    return deepcopy(patch)


def merge_patch(before: Document, after: Document) -> Document:
    """The JSON merge patch (RFC 7396) that makes ``after`` of ``before``: what differs, no more."""
    patch: Document = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if inner := merge_patch(old, value):
                patch[key] = inner
        elif key not in before or old != value:
            patch[key] = value
    return patch


def with_missing(document: Any, before: Any) -> Any:
    """A document with every field that another one had and it has not."""
    if not isinstance(document, dict) or not isinstance(before, dict):
        return document
    added = {key: value for key, value in before.items() if key not in document}
    kept = {key: with_missing(value, before.get(key)) for key, value in document.items()}
    return deepcopy(kept | added)


def unlike(wanted: Document, found: Document) -> list[str]:
    """Paths of a document that another one lacks, or has another value at.

    What it has beyond that is no matter: servers fill in defaults.
    """
    return list(_unlike(_compared(wanted), _compared(found), ""))


def _unlike(wanted: Any, found: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            inner = f"{path}.{key}" if path else key
            if key in found:
                yield from _unlike(value, found[key], inner)
            elif value not in (None, {}, []):
                yield inner
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from _unlike(one, other, f"{path}[{number}]")
    elif wanted != found:
        yield path


def _compared(document: Document) -> Document:
    metadata = document.get("metadata") or {}
    kept = {key: metadata[key] for key in _COMPARED_METADATA if metadata.get(key)}
    rest = {k: v for k, v in document.items() if k not in (*_THEIRS, "metadata")}
    return rest | {"metadata": kept}


def _named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, dict) and "name" in v for v in value)
