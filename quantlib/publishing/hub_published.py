"""A checkpoint that is published as a commit of a repository of the hub, read back."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from quantlib.errors import InvalidInputError, QuantlibError, StepError
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
from quantlib.sources import HubAddress, parse_address
from quantlib.sources.hub import list_files, resolve_commit
from quantlib.store import FileRecord, Store

OF_THE_HUB = frozenset({".gitattributes"})
"""Files that the hub writes itself."""


class PublishedCommit:
    """A commit.

    Args:
        address: ``hf://org/name@commit``, or another revision, which is looked up; the newest
            without one.

    Raises:
        InvalidInputError: The address is none, or there is no such commit for this token.
        QuantlibError: The hub cannot be asked.
    """

    name: str | None = None
    promised: str | None = None

    def __init__(self, address: str) -> None:
        parsed = parse_address(address)
        if not isinstance(parsed, HubAddress):
            raise InvalidInputError.one(address, "is no model on the hub", "give hf://org/name")
        with _of_no_step():
            commit = resolve_commit(parsed)
            self._files = list_files(parsed, commit)
        self.address = str(HubAddress(parsed.repo, commit))
        self.destination = f"hf://{parsed.repo}"

    def read(self, name: str) -> bytes | None:
        """A small file of the commit; None where there is none."""
        file = self._files.files.get(name)
        if file is None or file.bytes > MAX_TEXT_BYTES:
            return None
        with _of_no_step():
            return b"".join(self._files.stream(name))

    def measure(self, manifest: Manifest, advance: Advance, copy: Store | None) -> Measured:
        """Reads and hashes every file of the commit that the manifest names."""

        def record(name: str) -> FileRecord:
            with _of_no_step():
                return taken(name, self._files.stream(name), advance, copy)

        present = [name for name in manifest.files if name in self._files.files]
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            records = dict(zip(present, pool.map(record, present), strict=True))
        known = {*manifest.files, MANIFEST_NAME, SIGNATURE_NAME} | OF_THE_HUB
        addresses = {
            name: f"{self.address}/{name}" for name in (*manifest.files, *self._files.files)
        }
        strangers = sorted(self._files.files.keys() - known)
        return Measured(records, addresses, [stranger(addresses[name]) for name in strangers])


@contextmanager
def _of_no_step() -> Iterator[None]:
    """Errors of asking the hub, which are worded for a step that fetches, as what they are here."""
    try:
        yield
    except StepError as error:
        raise QuantlibError(error.what) from error
