"""Takes an image of a checkpoint out of its registry."""

from __future__ import annotations

from quantlib.publishing.oci.address import parse_image_address
from quantlib.publishing.oci.client import Repository
from quantlib.publishing.oci.published import PublishedImage
from quantlib.publishing.published import manifest_of


def remove_image(address: str) -> str:
    """Removes an image, and with it every tag of it: the checkpoint's, and those of jobs.

    Its layers, which other images may have too, are left to the registry's garbage collection.

    Args:
        address: ``oci://registry/repository`` with a digest or a tag.

    Returns:
        Its address, by its digest.

    Raises:
        InvalidInputError: There is no such image, it is none of a checkpoint, or may not be
            removed.
        StoreError: The registry fails, or removes nothing.
    """
    published = PublishedImage(address)
    manifest_of(published)  # nothing of somebody else's is removed
    repository = Repository(parse_image_address(published.destination), "pull,delete")
    # The index first: without it nobody pulls the others.
    for digest in published.documents:
        repository.delete_document(digest)
    return published.address
