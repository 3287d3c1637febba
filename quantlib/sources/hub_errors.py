"""huggingface_hub's errors, as errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from httpx2 import HTTPError
from huggingface_hub import constants
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quantlib.errors import InvalidInputError, QuantlibError, StepError, StoreError
from quantlib.sources import HubAddress


@contextmanager
def explained_errors(address: HubAddress) -> Iterator[None]:
    """Turns huggingface_hub's errors into ones that say what to do."""
    try:
        yield
    except (HTTPError, OSError) as error:
        raise _explained(address, error) from error


def _explained(address: HubAddress, error: Exception) -> QuantlibError:
    where, endpoint = str(address), constants.ENDPOINT
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    match error:
        case GatedRepoError():
            return InvalidInputError.one(
                where,
                "is gated",
                f"accept its terms on {endpoint}/{address.repo} and set HF_TOKEN to a token of "
                "that account",
            )
        case RevisionNotFoundError():
            return InvalidInputError.one(
                where, f"has no revision {address.revision!r}", "name a branch, a tag or a commit"
            )
        case RepositoryNotFoundError():
            return InvalidInputError.one(
                where,
                f"is not on {endpoint}, or is private",
                "check the name; for a private model set HF_TOKEN",
            )
        case OfflineModeIsEnabled():
            return StepError(
                "fetch",
                f"{where}: HF_HUB_OFFLINE is set; unset it, or give the folder of a copy",
            )
    if status in (401, 403):
        return InvalidInputError.one(
            where,
            f"{endpoint} refuses access ({status})",
            "set HF_TOKEN to a token that may read it",
        )
    if status == 429:
        return StepError(
            "fetch", f"{where}: too many requests; wait some minutes, or set HF_TOKEN for more"
        )
    if isinstance(error, FileMetadataError):
        return StepError("fetch", f"{where}: {endpoint} is no hub ({error}); check HF_ENDPOINT")
    if isinstance(error, OSError) and error.errno is not None:
        return StoreError(
            str(error.filename or constants.HF_HUB_CACHE), error.strerror or str(error)
        )
    reason = (str(cause or error).strip() or type(error).__name__).splitlines()[0]
    return StepError(
        "fetch",
        f"{where}: no answer from {endpoint} ({reason}); check the network, the proxy and "
        "HF_ENDPOINT, and run again: a download goes on where it stopped",
    )
