"""Opens a published checkpoint, wherever it is, to be read."""

from __future__ import annotations

from quantlib.publishing.published import Published, PublishedFolder
from quantlib.store import open_store


def open_published(address: str) -> Published:
    """The published checkpoint at an address; an image or a commit is looked up.

    Args:
        address: A folder, ``s3://bucket/prefix/name/digest``, ``oci://registry/repository`` with a
            digest or a tag, or ``hf://org/name``, maybe with a revision.

    Raises:
        InvalidInputError: It is of no such kind, or there is nothing to be seen there.
        QuantlibError: The registry or hub cannot be asked.
    """
    # The clients of registries and hubs take a second to import.
    if address.startswith("oci://"):
        from quantlib.publishing.oci.published import PublishedImage

        return PublishedImage(address)
    if address.startswith("hf://"):
        from quantlib.publishing.hub_published import PublishedCommit

        return PublishedCommit(address)
    return PublishedFolder(open_store(address.rstrip("/")))
