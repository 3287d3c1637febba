"""What a model is called, where its files do not say so."""

from __future__ import annotations

import re
from typing import TypeVar

from quantlib.errors import InvalidInputError
from quantlib.recipe import AskedRecipe
from quantlib.sources import FolderAddress, GgufAddress, S3Address, parse_address

AnyRecipe = TypeVar("AnyRecipe", bound=AskedRecipe)

_HUB_CACHE = re.compile(r"models--(?:.+--)?(?P<name>[^/]+)/snapshots/[^/]+/?$")
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


def address_name(address: str) -> str:
    """The name that an address gives to a model, fit for a folder; empty where it gives none.

    That of the folder or the file; of a snapshot in the cache of the hub's client, that of the
    repository; the last part of a prefix in object storage.
    """
    try:
        parsed = parse_address(address)
    except InvalidInputError:
        return ""
    match parsed:
        case FolderAddress(path):
            # Not resolved: a link to a folder is called as somebody wanted it to be called.
            path = path if path.name not in ("", "..") else path.resolve()
            cached = _HUB_CACHE.search(str(path.absolute()))
            name = cached["name"] if cached else path.absolute().name
        case GgufAddress(path):
            name = path.stem
        case S3Address(prefix):
            name = prefix.rstrip("/").removeprefix("s3://").rpartition("/")[2]
        case _:
            name = ""
    return _UNFIT.sub("-", name).strip(".-_")


def named(recipe: AnyRecipe, address: str) -> AnyRecipe:
    """The recipe with a name for what is published: its own, else the one of the address."""
    name = address_name(address or recipe.model or "")
    if recipe.publish.name is not None or not name:
        return recipe
    publish = recipe.publish.model_copy(update={"name": name})
    return recipe.model_copy(update={"publish": publish})
