"""What a step may reach: files, folders and the network.

A process of this machine reaches all of it; a container is given this and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.launch import Launch
from quantlib.recipe import Recipe, recipe_from_text
from quantlib.sources.pinned import split_pin

_READS_MODEL = {"resolve", "fetch"}
_READS_TEXTS = {"resolve", "plan", "calibrate", "validate"}


@dataclass(frozen=True)
class Access:
    """What a step may reach.

    Attributes:
        read: Files and folders that it reads.
        store: The folder of the store, which it writes to; None where the store is no folder.
        destination: The folder that it publishes in; None where it publishes nothing.
        network: Whether something that it needs is elsewhere.
    """

    read: tuple[Path, ...]
    store: Path | None
    destination: Path | None
    network: bool


def access_of(launch: Launch) -> Access:
    """What a step needs to reach, by its name and its parameters.

    Raises:
        InvalidInputError: The recipe that it is given is none.
    """
    step = launch.name.partition("[")[0]
    parameters = launch.parameters
    recipe = recipe_from_text(parameters["recipe"]) if "recipe" in parameters else Recipe()
    source = (parameters.get("source") or recipe.model or "") if step in _READS_MODEL else ""
    source, _ = split_pin(source)
    texts = [recipe.calibration.dataset, recipe.validation.dataset] if step in _READS_TEXTS else []
    store = parameters.get("store", "")
    looked_at = destination = ""
    if step in ("resolve", "publish"):
        destination = parameters.get("destination") or recipe.publish.destination or ""
    if step == "resolve":
        looked_at, destination = destination, ""
    elif step == "publish" and not destination and (folder := _local(store)):
        destination = str(folder.parent / "published")  # as the step chooses
    paths = [_local(address) for address in (source, looked_at, *texts) if address]
    return Access(
        read=tuple(path for path in (*paths, *launch.artifacts) if path and path.exists()),
        store=_local(store),
        destination=_local(destination),
        # A text that is no file here is a dataset on the hub.
        network=any(map(_remote, (source, store, looked_at, destination)))
        or any(text and not Path(text).exists() for text in texts),
    )


def _local(address: str) -> Path | None:
    """The path that an address names; None where it is empty or elsewhere."""
    if not address or _remote(address):
        return None
    return Path(address.removeprefix("file://")).absolute()


def _remote(address: str) -> bool:
    return "://" in address and not address.startswith("file://")
