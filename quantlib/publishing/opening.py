"""Which kind of destination an address is of."""

from __future__ import annotations

from pathlib import Path

from quantlib.errors import InvalidInputError, Problem
from quantlib.publishing.destination import Destination
from quantlib.publishing.folder import FolderDestination
from quantlib.publishing.hub import SCHEME as HUB
from quantlib.publishing.hub import HubDestination
from quantlib.publishing.oci.address import SCHEME as IMAGE
from quantlib.publishing.oci.destination import ImageDestination


def open_destination(address: str, base_image: str = "") -> Destination:
    """The destination at an address; nothing is asked of it yet.

    Args:
        address: A folder, ``s3://bucket/prefix``, ``oci://registry/repository[:tag]`` or
            ``hf://org/name``.
        base_image: What images lie on; empty for nothing.

    Raises:
        InvalidInputError: It is of no such kind, or a base is named for what is no image.
    """
    address = address.removeprefix("file://")
    if address.startswith(IMAGE):
        return ImageDestination(address, base_image)
    if base_image:
        raise InvalidInputError.one(
            "publish.base_image", f"is for images, and {address} is none", "leave it out"
        )
    if address.startswith(HUB):
        return HubDestination(address)
    if address.startswith("s3://"):
        return FolderDestination(address.rstrip("/"))
    if "://" not in address:
        return FolderDestination(str(Path(address).absolute()))
    raise InvalidInputError.one(
        f"publish destination {address}",
        "unsupported kind of destination",
        "give a folder, s3://bucket/prefix, oci://registry/repository or hf://org/name",
    )


def publishing_problems(address: str, base_image: str = "") -> list[Problem]:
    """Why nothing can be published at an address; nothing is left behind there.

    Args:
        address: As :func:`open_destination` takes it.
        base_image: As well.
    """
    try:
        return open_destination(address, base_image).problems()
    except InvalidInputError as error:
        return list(error.problems)
