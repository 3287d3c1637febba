"""A published checkpoint where it is, for those who read it: a folder, an image or a commit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from threading import Lock
from typing import Protocol

from quantlib.report.manifest import (
    MANIFEST_NAME,
    Manifest,
    Measured,
    Place,
    measure_folder,
    not_published,
    parse_manifest,
    places_of,
    promised_by_folder,
)
from quantlib.runtime.progress import Advance
from quantlib.store import FileRecord, Store

MAX_TEXT_BYTES = 1 << 30
"""Of a report; those of the largest models take some hundred MB."""


class Published(Protocol):
    """A published checkpoint.

    Every method raises InvalidInputError where it is not open to whoever asks, and StoreError where
    the place fails.

    Attributes:
        address: By what never means another one.
        destination: Where it was published to, as
            :func:`quantlib.publishing.opening.open_destination` takes it.
        name: The model's, by the address; None where that says nothing of it.
        promised: The checkpoint's digest, by the address; None as well.
    """

    address: str
    destination: str
    name: str | None
    promised: str | None

    def read(self, name: str) -> bytes | None:
        """A file that describes the checkpoint; None where there is none.

        Once all was measured, small files of the checkpoint itself as well.
        """

    def measure(self, manifest: Manifest, advance: Advance, copy: Store | None) -> Measured:
        """Reads and hashes every file that is there.

        Args:
            manifest: What should be there.
            advance: Called with the number of bytes that were hashed since the last call, by
                several threads.
            copy: Gets the very bytes that are hashed, of the files that the manifest names.

        Raises:
            InvalidInputError: What is there cannot be read as a published checkpoint.
        """


class PublishedFolder:
    """A folder ``<destination>/<name>/<digest>``, here or in object storage."""

    def __init__(self, store: Store) -> None:
        self.address = store.address
        shelf, _, _ = store.address.rpartition("/")
        self.destination, _, name = shelf.rpartition("/")
        self.name: str | None = name
        self.promised: str | None = promised_by_folder(store.address)
        self._store = store
        self._places: Mapping[str, Place] = {}

    def read(self, name: str) -> bytes | None:
        """A small file; one in the store around the folder, once that was measured."""
        place = self._places.get(name, Place(self._store, name))
        return bytes(place.store.read(place.path)) if place.store.exists(place.path) else None

    def measure(self, manifest: Manifest, advance: Advance, copy: Store | None) -> Measured:
        """Reads and hashes every file, wherever the manifest says that it lies."""
        hashed = partial(_hashed, advance, copy)
        measured = measure_folder(self._store, manifest, hashed)
        self._places = places_of(self._store, manifest)
        return measured


def manifest_bytes(published: Published) -> bytes:
    """The content of a published checkpoint's manifest.

    Raises:
        InvalidInputError: There is none.
        StoreError: It cannot be read.
    """
    data = published.read(MANIFEST_NAME)
    if data is None:
        raise not_published(f"{published.address}/{MANIFEST_NAME}")
    return data


def manifest_of(published: Published) -> Manifest:
    """A published checkpoint's manifest.

    Raises:
        InvalidInputError: There is none, or it is no valid one.
        StoreError: It cannot be read.
    """
    return parse_manifest(manifest_bytes(published), f"{published.address}/{MANIFEST_NAME}")


def taken(
    name: str, chunks: Iterable[bytes | bytearray], advance: Advance, copy: Store | None
) -> FileRecord:
    """Size and sha256 of a file that comes in chunks, which is copied on the way."""
    told = _told(chunks, advance)
    if copy is not None:
        return copy.put_stream(told, name)
    hashed, size = hashlib.sha256(), 0
    for chunk in told:
        hashed.update(chunk)
        size += len(chunk)
    return FileRecord(bytes=size, sha256=hashed.hexdigest())


def serialized(advance: Advance | None) -> Advance:
    """Lets several threads report their progress."""
    lock = Lock()

    def report(count: int) -> None:
        with lock:
            if advance is not None:
                advance(count)

    return report


def _hashed(advance: Advance, copy: Store | None, place: Place) -> FileRecord:
    return taken(place.path, place.store.stream(place.path), advance, copy)


def _told(chunks: Iterable[bytes | bytearray], advance: Advance) -> Iterator[bytes | bytearray]:
    for chunk in chunks:
        yield chunk
        advance(len(chunk))
