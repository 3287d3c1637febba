"""A published checkpoint that is to be served: verified, and where a service finds it."""

from __future__ import annotations

from quantlib.errors import InvalidInputError
from quantlib.publishing.verification import Policy, Verified, verify_for_promotion
from quantlib.report.manifest import require_in_folder
from quantlib.store import open_store

_ANY_SIGNATURE = Policy()


def check_published(address: str, policy: Policy = _ANY_SIGNATURE) -> Verified:
    """Verifies a published folder file by file.

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
    return verified


def storage_uri(published: Verified, given: str | None = None) -> str:
    """Where a service finds a checkpoint: a folder named by the digest, ending in a slash.

    Without the slash, KServe would also fetch other folders whose names start like this one's.

    Args:
        published: The checkpoint.
        given: Its folder as the cluster sees it; None for the address that it was published to.

    Raises:
        InvalidInputError: The folder is not named by the digest, or is one that only this machine
            sees.
    """
    address = (given or published.address).rstrip("/")
    digits = published.digest.removeprefix("sha256:")
    if given is None and ("://" not in address or address.startswith("file://")):
        raise InvalidInputError.one(
            address,
            "is a folder of this machine, which no cluster sees",
            "name the same folder as the cluster does with --storage-uri, such as "
            f"pvc://CLAIM/PATH/{digits}/",
        )
    if address.rpartition("/")[2] != digits:
        what = f"{address} does not end in the checkpoint's digest {published.digest}"
        raise InvalidInputError.one("--storage-uri", what)
    return f"{address}/"


def report_address(published: Verified) -> str:
    """Where a checkpoint's report is."""
    return f"{published.address.rstrip('/')}/{published.manifest.report}"


def short(digest: str) -> str:
    """The first digits of a digest, fit for names and messages."""
    return digest.removeprefix("sha256:")[:12]
