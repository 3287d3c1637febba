"""What is published, and what every kind of place for it can do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from quantlib.errors import Problem
from quantlib.publishing.signing import Signer
from quantlib.report.manifest import Manifest, checkpoint_files
from quantlib.store import FileRecord, Receipt, Store

_PIN = re.compile(r"(?:/(?=[0-9a-f]{64}$)|@(?=sha256:[0-9a-f]{64}$)|[@:](?=[0-9a-f]{40}$))(.+)$")


@dataclass(frozen=True)
class Member:
    """A file that is published.

    Attributes:
        name: Its path within what is published.
        open: Gives its content from the start.
    """

    name: str
    record: FileRecord
    open: Callable[[], Iterable[bytes | bytearray]]

    @classmethod
    def of(cls, name: str, data: bytes) -> Member:
        """One whose content is at hand."""
        return cls(name, record_of(data), lambda: (data,))


@dataclass(frozen=True)
class Draft:
    """What was built: all that is published but for its number and time.

    Attributes:
        store: Where the checkpoint's files are.
        checkpoint: The merge step's receipt.
        texts: The files that describe the checkpoint, by name.
        manifest: With any number and time.
    """

    store: Store
    checkpoint: Receipt
    texts: Mapping[str, bytes]
    manifest: Manifest

    def checkpoint_members(self) -> list[Member]:
        """The checkpoint's files, where the store has them."""
        files = checkpoint_files(self.manifest.files)
        return [
            Member(name, record, partial(self.store.stream, self.checkpoint.path(name)))
            for name, record in files.items()
        ]

    def text_members(self) -> list[Member]:
        """The files that describe it."""
        return [Member.of(name, text) for name, text in sorted(self.texts.items())]


@dataclass(frozen=True)
class Publication:
    """A checkpoint that is published.

    Attributes:
        address: Where it is, by what never means another one: a folder's or an image's digest, a
            commit.
        manifest: Content of its ``manifest.json``.
    """

    address: str
    manifest: bytes

    @property
    def storage_uri(self) -> str | None:
        """What a service of KServe loads it by; None where only this machine sees it."""
        return storage_uri(self.address)


class Destination(Protocol):
    """A place for checkpoints."""

    address: str

    def problems(self) -> list[Problem]:
        """Why nothing could be published there, found without leaving anything behind."""

    def publish(self, draft: Draft, signer: Signer | None, replace: bool) -> Publication:
        """Publishes a checkpoint, unless it is there as it should be.

        Args:
            draft: What was built.
            signer: Who signs; None for nobody.
            replace: Whether a signature by somebody else is replaced.
        """

    def enter_job(self, job: str, publication: Publication) -> None:
        """Notes that a job of the watcher led to a publication."""

    def published_of(self, job: str) -> str | None:
        """Where that is which a job led to; None where there is none, or it is gone."""


def record_of(data: bytes) -> FileRecord:
    """Size and sha256 of some bytes."""
    return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def storage_uri(address: str) -> str | None:
    """What a service of KServe loads a published checkpoint by.

    With a slash at its end, or KServe would also fetch folders whose names start alike.

    Args:
        address: Of the checkpoint.

    Returns:
        None where only this machine sees it.
    """
    if address.startswith("s3://"):
        return f"{address}/"
    if address.startswith("hf://"):
        return address.replace("@", ":")  # as its storage initializer has it
    return address if address.startswith("oci://") else None


def address_of(uri: str) -> str:
    """The address of a checkpoint that a service of KServe loads by a URI."""
    if uri.startswith("hf://"):
        repo, colon, commit = uri.removeprefix("hf://").partition(":")
        return f"hf://{repo}@{commit}" if colon else uri
    return uri.rstrip("/")


def pin_of(address: str) -> str:
    """What of an address or a URI never means another content; empty where there is none.

    The digits of a checkpoint's digest that name a folder, an image's digest, or a commit.
    """
    found = _PIN.search(address.rstrip("/"))
    return found[1] if found else ""
