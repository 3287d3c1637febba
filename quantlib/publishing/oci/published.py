"""A checkpoint that is published as an image of a registry, read back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial

from quantlib.errors import InvalidInputError, Problem, StoreError
from quantlib.publishing.oci.address import parse_image_address
from quantlib.publishing.oci.client import Document, Repository
from quantlib.publishing.oci.image import Descriptor
from quantlib.publishing.oci.layers import files_of
from quantlib.publishing.oci.unpacking import unpack
from quantlib.publishing.published import MAX_TEXT_BYTES, taken
from quantlib.report.manifest import (
    MANIFEST_NAME,
    PARALLEL_FILES,
    SIGNATURE_NAME,
    Manifest,
    Measured,
    stranger,
)
from quantlib.runtime.progress import Advance
from quantlib.store import FileRecord, Store

_DIGITS = re.compile("[0-9a-f]{64}")
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_DESCRIBING_LAYERS = 2
"""The last ones, which publishing gives the files that describe a checkpoint."""

_KEPT_BYTES = 1 << 20
"""Of files of the checkpoint that are at hand after measuring."""


class PublishedImage:
    """An image, on whichever platforms it is for.

    Args:
        address: ``oci://registry/repository@sha256:digest``, or with a tag, which is looked up.

    Attributes:
        documents: Digests of its index and of the manifests that that names.

    Raises:
        InvalidInputError: The address is none, or names no image.
        StoreError: The registry fails.
    """

    name: str | None = None

    def __init__(self, address: str) -> None:
        parsed = parse_image_address(address)
        tag = parsed.reference if ":" not in parsed.reference else ""
        if not parsed.reference:
            remedy = "give one by its digest, …@sha256:…, or by a tag"
            raise InvalidInputError.one(address, "names a repository and no image in it", remedy)
        self._repository = Repository(replace(parsed, reference=""), "pull")
        document = self._repository.document(parsed.reference)
        if document is None:
            raise InvalidInputError.one(address, "there is no such image")
        self.address = self._repository.address.at(document.digest)
        self.promised: str | None = f"sha256:{tag}" if _DIGITS.fullmatch(tag) else None
        self.destination = str(replace(parsed, reference="" if self.promised else tag))
        self.documents = [document.digest]
        self._images = self._layers(document)
        self._kept: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        """A small file; one of the checkpoint itself, once all was measured."""
        return self._descriptions.get(name, self._kept.get(name))

    def measure(self, manifest: Manifest, advance: Advance, copy: Store | None) -> Measured:
        """Reads every layer of every platform's image once, to its last byte."""
        layers = {each["digest"]: each for image in self._images for each in image}
        work = partial(self._unpack, manifest, advance, copy)
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            found = dict(zip(layers, pool.map(work, layers.values()), strict=True))
        records: dict[str, FileRecord] = {}
        problems = []
        for files in found.values():
            problems += [
                Problem(f"{self.address}/{name}", "is in two layers")
                for name in files.keys() & records.keys()
            ]
            records |= files
        for image in self._images:
            if {name for each in image for name in found[each["digest"]]} != set(records):
                what = "its images for several platforms hold different files"
                problems.append(Problem(self.address, what))
        known = {*manifest.files, MANIFEST_NAME, SIGNATURE_NAME}
        addresses = {name: f"{self.address}/{name}" for name in (*records, *manifest.files)}
        problems += [stranger(addresses[name]) for name in sorted(records.keys() - known)]
        return Measured(records, addresses, problems)

    @cached_property
    def _descriptions(self) -> dict[str, bytes]:
        """The files that describe the checkpoint; none in an image of something else."""
        found: dict[str, bytes] = {}
        for layer in self._images[0][-_DESCRIBING_LAYERS:]:
            if layer["size"] <= MAX_TEXT_BYTES:
                blob = self._repository.blob(layer["digest"], layer["size"])
                with suppress(StoreError):  # of a base, or of another image
                    found |= files_of(blob)
        return found

    def _unpack(
        self, manifest: Manifest, advance: Advance, copy: Store | None, layer: Descriptor
    ) -> dict[str, FileRecord]:
        def receive(name: str, size: int, content: Iterator[bytes]) -> FileRecord:
            target = copy if name in manifest.files else None
            if size > _KEPT_BYTES:
                return taken(name, content, advance, target)
            self._kept[name] = b"".join(content)
            return taken(name, (self._kept[name],), advance, target)

        digest = layer["digest"]
        return unpack(
            f"{self.address}: layer {digest[:19]}…",
            self._repository.blob_chunks(digest, layer["size"]),
            digest,
            is_packed=layer["mediaType"].endswith("gzip"),
            receive=receive,
        )

    def _layers(self, document: Document) -> Sequence[Sequence[Descriptor]]:
        """The layers of each image that an index names, or of the one that is none."""
        try:
            content = document.parsed(self.address)
            if "manifests" not in content:
                return [_checked(content["layers"])]
            found = []
            for entry in content["manifests"]:
                self.documents.append(entry["digest"])
                image = self._repository.document(entry["digest"])
                if image is None:
                    what = f"its image {entry['digest']} is not there any more"
                    raise InvalidInputError.one(self.address, what, "publish it again")
                found.append(_checked(image.parsed(self.address)["layers"]))
            if found:
                return found
        except (KeyError, TypeError, AttributeError):
            pass
        raise InvalidInputError.one(self.address, "is no image of layers")


def _checked(layers: Sequence[Descriptor]) -> Sequence[Descriptor]:
    for layer in layers:
        if not isinstance(layer["size"], int) or not _DIGEST.fullmatch(layer["digest"]):
            raise TypeError(layer)
        if not isinstance(layer["mediaType"], str):
            raise TypeError(layer)
    return layers
