"""What is known of a published checkpoint that is to be served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantlib.errors import InvalidInputError
from quantlib.publishing.verification import Policy, verify_for_promotion
from quantlib.report.manifest import Manifest, require_in_folder
from quantlib.report.model import Report
from quantlib.store import Store, open_store
from quantlib.store.receipt import receipt_path

SHORT_DIGITS = 12
_ANY_SIGNATURE = Policy()


@dataclass(frozen=True)
class Published:
    """A published checkpoint that was verified.

    Attributes:
        store: Its folder.
        manifest: What it holds.
        report: What it was judged by.
        arguments: Of vLLM's server, by name.
    """

    store: Store
    manifest: Manifest
    report: Report
    arguments: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of the checkpoint, with ``sha256:``."""
        return self.manifest.checkpoint

    @property
    def short_digest(self) -> str:
        """The first digits, fit for names and messages."""
        return short(self.digest)

    @property
    def report_address(self) -> str:
        """Where the report is."""
        return self.store.full_address(self.manifest.report)

    @property
    def run(self) -> str:
        """Which run made and judged it: its last receipt, within the run's store."""
        last = self.report.provenance.receipts[-1]
        return receipt_path(last.step, last.key)

    def storage_uri(self, given: str | None = None) -> str:
        """Where a service finds the checkpoint: a folder named by the digest, ending in a slash.

        Without the slash, KServe would also fetch other folders whose names start like this one's.

        Args:
            given: The same folder as the cluster sees it; None for the address it was published to.

        Raises:
            InvalidInputError: The folder is not named by the digest, or is one that only this
                machine sees.
        """
        address = (given or self.store.address).rstrip("/")
        if given is None and ("://" not in address or address.startswith("file://")):
            raise InvalidInputError.one(
                address,
                "is a folder of this machine, which no cluster sees",
                "name the same folder as the cluster does with --storage-uri, such as "
                f"pvc://CLAIM/PATH/{self.digest.removeprefix('sha256:')}/",
            )
        if address.rpartition("/")[2] != self.digest.removeprefix("sha256:"):
            raise InvalidInputError.one(
                "--storage-uri", f"{address} does not end in the checkpoint's digest {self.digest}"
            )
        return f"{address}/"


def short(digest: str) -> str:
    """The first digits of a digest."""
    return digest.removeprefix("sha256:")[:SHORT_DIGITS]


def check_published(address: str, policy: Policy = _ANY_SIGNATURE) -> Published:
    """Verifies a published folder file by file, and reads what promotion needs of it.

    Args:
        address: The folder named by the digest, as a path or ``s3://bucket/prefix/name/digest``.
        policy: Whose signature it must carry.

    Raises:
        InvalidInputError: Its files lie elsewhere.
        VerificationError: It is not what it says of itself, did not pass the gate, or is not signed
            as the policy asks.
        StoreError: It cannot be read.
    """
    store = open_store(address.rstrip("/"))
    verified = verify_for_promotion(store, policy)
    require_in_folder(store, verified.manifest)
    return Published(store, verified.manifest, verified.report, verified.serve)
