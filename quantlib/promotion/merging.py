"""Documents laid over each other, and what became of a document that was changed."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeGuard

Document = dict[str, Any]

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


def difference(before: Document, after: Document, *, by_name: bool = False) -> Document:
    """The patch that makes ``after`` of ``before`` where it is :func:`merged`, and no more.

    Without ``by_name`` it is a JSON merge patch (RFC 7396); with it, no list loses an entry.
    """
    patch: Document = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if inner := difference(old, value, by_name=by_name):
                patch[key] = inner
        elif by_name and _named(old) and _named(value):
            known = {each["name"]: each for each in old}
            news = [
                {"name": each["name"]} | difference(known.get(each["name"], {}), each, by_name=True)
                for each in value
                if each not in old
            ]
            patch |= {key: news} if news else {}
        elif key not in before or old != value:
            patch[key] = value
    return patch


def with_missing(document: Any, before: Any) -> Any:
    """A document with every field that another one had and it has not."""
    if not isinstance(document, dict) or not isinstance(before, dict):
        return document
    return before | {key: with_missing(value, before.get(key)) for key, value in document.items()}


def unlike(wanted: Document, found: Document) -> list[str]:
    """Paths of a document that another one lacks, or has another value at.

    What it has beyond that is no matter: servers fill in defaults, write the status, and may
    convert to another version.
    """
    return list(_unlike(_compared(wanted), _compared(found), ""))


def _unlike(wanted: Any, found: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            yield from _unlike(value, found.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from _unlike(one, other, f"{path}[{number}]")
    elif wanted != found and (found is not None or wanted not in ({}, [])):
        yield path


def _compared(document: Document) -> Document:
    metadata = document.get("metadata") or {}
    kept = {key: metadata[key] for key in _COMPARED_METADATA if metadata.get(key)}
    theirs = ("metadata", "status", "apiVersion", "kind")
    return {k: v for k, v in document.items() if k not in theirs} | {"metadata": kept}


def _named(value: Any) -> TypeGuard[list[Document]]:
    return isinstance(value, list) and all(isinstance(v, dict) and "name" in v for v in value)
