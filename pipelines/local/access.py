"""What a step may reach: files, folders and the network.

A process of this machine reaches all of it; a container is given this and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.local.calls import Call
from quantlib.checks.recipe_choice import recipe_of
from quantlib.publishing.oci.address import SCHEME as IMAGE
from quantlib.publishing.oci.auth import credential_files
from quantlib.recipe import AskedRecipe
from quantlib.sources.pinned import split_pin
from quantlib.tasks.items import given_items
from quantlib.text.addresses import HubText, LocalText, ObjectText, Text, parse_text
from quantlib.text.wanted import wanted_texts

_READS_MODEL = {"resolve", "fetch"}
_READS_TEXTS = {"resolve", "fetch"}


@dataclass(frozen=True)
class Access:
    """What a step may reach.

    Attributes:
        read: Files and folders that it reads.
        store: The folder of the store, which it writes to; None where the store is no folder.
        destination: The folder that it publishes in; None where it publishes nothing.
        network: Whether something that it needs is elsewhere.
        credentials: File of docker's credentials, where it looks at a registry.
    """

    read: tuple[Path, ...]
    store: Path | None
    destination: Path | None
    network: bool
    credentials: Path | None = None


def access_of(call: Call) -> Access:
    """What a step needs to reach, by its name and its parameters.

    Raises:
        InvalidInputError: The recipe that it is given is none.
    """
    step, parameters = call.step, call.inputs.parameters
    recipe = recipe_of(parameters) if "recipe" in parameters else AskedRecipe()
    source = (parameters.get("source") or recipe.model or "") if step in _READS_MODEL else ""
    source, _ = split_pin(source)
    texts = wanted_texts(recipe).values() if step in _READS_TEXTS else ()
    addresses = [parse_text(Text.of(section)) for section in texts]
    if step in _READS_TEXTS:
        addresses += map(parse_text, given_items(recipe).values())
    local = [each.path.absolute() for each in addresses if isinstance(each, LocalText)]
    store = parameters.get("store", "")
    looked_at = destination = ""
    if step in ("resolve", "publish"):
        destination = parameters.get("destination") or recipe.publish.destination or ""
    if step == "resolve":
        looked_at, destination = destination, ""
    elif step == "publish" and not destination and (folder := _local(store)):
        destination = str(folder.parent / "published")  # as the step chooses
    is_image = (destination or looked_at).startswith(IMAGE)
    artifacts = [one.path for found in call.inputs.artifacts.values() for one in found]
    paths = [_local(address) for address in (source, looked_at) if address]
    return Access(
        read=tuple(path for path in (*paths, *local, *artifacts) if path and path.exists()),
        store=_local(store),
        destination=_local(destination),
        network=any(map(_remote, (source, store, looked_at, destination)))
        or any(isinstance(each, (HubText, ObjectText)) for each in addresses),
        credentials=next(credential_files(), None) if is_image else None,
    )


def _local(address: str) -> Path | None:
    """The path that an address names; None where it is empty or elsewhere."""
    if not address or _remote(address):
        return None
    return Path(address.removeprefix("file://")).absolute()


def _remote(address: str) -> bool:
    return "://" in address and not address.startswith("file://")
