"""What is published, and what every kind of place for it can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from quantlib.errors import Problem
from quantlib.publishing.signing import Signer
from quantlib.report.manifest import Manifest
from quantlib.store import Receipt, Store


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
    return address if address.startswith("oci://") else None
