"""A model on the Hugging Face hub, or on a server that speaks its API.

Everything goes through huggingface_hub: the token (``HF_TOKEN``, or the one that ``hf auth login``
stored), the endpoint (``HF_ENDPOINT``) and the cache (``HF_HOME``), which other programs share.
Only the bytes of a file that is not in the cache yet are fetched by :func:`_download_blob`:
huggingface_hub throws away what it has of a file when it is interrupted, and a weight file is worth
resuming.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import FileMetadataError
from huggingface_hub.file_download import get_hf_file_metadata, http_get, repo_folder_name
from huggingface_hub.utils import (
    WeakFileLock,
    build_hf_headers,
    hf_raise_for_status,
    http_backoff,
    http_stream_backoff,
)

from quantlib.checkpoint.header import TensorInfo
from quantlib.errors import StepError, StoreError
from quantlib.runtime.progress import Advance
from quantlib.sources import HubAddress
from quantlib.sources.arrival import Arrived, bring_model, room_needed
from quantlib.sources.hub_errors import explained_errors
from quantlib.sources.inspection import SMALL_FILES, Kind, kind_of, model_files, open_model
from quantlib.sources.scan import ShowProgress, hash_and_scan
from quantlib.sources.space import require_space
from quantlib.store import FileRecord, LocalStore, StepOutput

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it.

    Attributes:
        bytes: Its size.
        sha256: Its digest, which the hub knows of large files only.
    """

    bytes: int
    sha256: str | None


class HubFiles:
    """The files of one commit, as :class:`quantlib.checkpoint.source.FileSource`.

    Small files are downloaded whole; of weight files only the bytes asked for travel, so that the
    headers of a model are checked before its weights are downloaded.

    Attributes:
        license: The name that its card gives its licence; None where it gives none.
    """

    def __init__(
        self,
        address: HubAddress,
        commit: str,
        files: Mapping[str, HubFile],
        license_name: str | None = None,
    ) -> None:
        self.address = address
        self.commit = commit
        self.files = files
        self.license = license_name

    def names(self) -> tuple[str, ...]:
        """The files in the root of the repository, sorted."""
        return tuple(sorted(name for name in self.files if "/" not in name))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self.files[name].bytes

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytearray:
        """``length`` bytes from ``offset``; to the end by default."""
        if length is None:
            length = self.size(name) - offset
        if name not in SMALL_FILES:
            return self._read_range(name, offset, length)
        if self.cached(name) is None:
            self.download(name, lambda count: None)
        return bytearray((self.folder() / name).read_bytes()[offset : offset + length])

    def stream(self, name: str) -> Iterator[bytes]:
        """A file from start to end, past the cache."""
        with (
            explained_errors(self.address),
            http_stream_backoff(
                "GET", self.url(name), headers=build_hf_headers(), timeout=_TIMEOUT_SECONDS
            ) as response,
        ):
            hf_raise_for_status(response)
            yield from response.iter_bytes(_CHUNK_BYTES)

    def describe(self, name: str) -> str:
        """The file's address, for messages."""
        return f"hf://{self.address.repo}@{self.commit[:12]}/{name}"

    def folder(self) -> Path:
        """The folder of the commit in huggingface_hub's cache, which holds what was downloaded."""
        return _cache() / _repo_folder(self.address) / "snapshots" / self.commit

    def cached(self, name: str) -> Path | None:
        """Where a file is that was downloaded before, by whatever program."""
        path = try_to_load_from_cache(
            self.address.repo, name, revision=self.commit, cache_dir=_cache()
        )
        return Path(path) if isinstance(path, str) else None

    def download(self, name: str, advance: Advance) -> None:
        """Brings a file that is not there yet to huggingface_hub's cache.

        Args:
            name: The file.
            advance: Called with the number of bytes that have arrived since the last call.
        """
        with explained_errors(self.address):
            _download_blob(self, name, advance)
            # The blob is in the cache, under its name there: this enters it into the snapshot.
            hf_hub_download(
                self.address.repo,
                name,
                revision=self.commit,
                cache_dir=_cache(),
                endpoint=constants.ENDPOINT,
            )

    def drop(self, name: str) -> None:
        """Removes a file from the cache."""
        link = self.folder() / name
        link.resolve().unlink(missing_ok=True)
        link.unlink(missing_ok=True)

    def url(self, name: str) -> str:
        """Where a file is downloaded from."""
        return hf_hub_url(
            self.address.repo, name, revision=self.commit, endpoint=constants.ENDPOINT
        )

    def _read_range(self, name: str, offset: int, length: int) -> bytearray:
        data = bytearray()
        headers = build_hf_headers() | {"Range": f"bytes={offset}-{offset + length - 1}"}
        with (
            explained_errors(self.address),
            http_stream_backoff(
                "GET", self.url(name), headers=headers, timeout=_TIMEOUT_SECONDS
            ) as response,
        ):
            hf_raise_for_status(response)
            # A server may ignore the range and send the file from its start.
            skipped = 0 if response.status_code == 206 else offset
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) >= skipped + length:
                    break
        data = data[skipped : skipped + length]
        if len(data) < length:
            raise StoreError(self.describe(name), f"ends before the range {offset}+{length}")
        return data


def resolve_commit(address: HubAddress) -> str:
    """The commit that an address means now; no request is made for one that names a commit.

    Raises:
        InvalidInputError: There is no such model or revision, or it is not open to this token.
        StepError: The hub cannot be asked.
    """
    if _COMMIT.fullmatch(address.revision):
        return address.revision
    return _model_info(address)["sha"]


def list_files(address: HubAddress, commit: str) -> HubFiles:
    """What a commit holds.

    Raises:
        InvalidInputError: There is no such model or revision, or it is not open to this token.
        StepError: The hub cannot be asked.
    """
    info = _model_info(HubAddress(address.repo, commit))
    files = {
        entry["rfilename"]: HubFile(entry.get("size") or 0, (entry.get("lfs") or {}).get("sha256"))
        for entry in info["siblings"]
    }
    card = info.get("cardData")
    said = card.get("license") if isinstance(card, dict) else None
    return HubFiles(address, commit, files, said if isinstance(said, str) else None)


def bring_from_hub(output: StepOutput, files: HubFiles, progress: ShowProgress) -> Kind:
    """Brings a model into the store by huggingface_hub's cache.

    All that can be checked of it is checked before a weight is downloaded. A store that is a folder
    shares the cache's files; for another one they are removed from the cache as soon as they have
    arrived, unless they were there before.

    Args:
        output: Of the step.
        files: The model's.
        progress: Shows how far it is.

    Returns:
        What it is.

    Raises:
        InvalidInputError: The model is not there, not open to this token, or cannot be quantized.
        StepError: The network failed. What has arrived is kept, and the next call resumes.
    """
    checkpoint = open_model(files)
    kept = isinstance(output.store, LocalStore)
    sizes = [files.size(name) for name in model_files(checkpoint) if files.cached(name) is None]
    remedy = "free some, or set HF_HOME to another folder"
    require_space(_cache(), room_needed(output, sizes), "are to be downloaded", remedy)

    def bring(name: str, tensors: tuple[TensorInfo, ...], advance: Advance) -> Arrived:
        there = files.cached(name) is not None
        if there:
            advance(files.size(name))
        else:
            files.download(name, advance)
        path = (files.folder() / name).resolve()
        digest, problems = hash_and_scan(path, tensors, lambda count: None)
        if files.files[name].sha256 not in (None, digest):
            files.drop(name)  # what looks like a bad model is a bad copy
            raise StepError("fetch", f"damaged on the way and dropped: {name}; run again")
        count = len(tensors) if tensors else None
        record = FileRecord(bytes=path.stat().st_size, sha256=digest, tensors=count)
        if not problems:
            output.add_local_file(name, path, record)
        if not kept and not there:
            files.drop(name)
        return Arrived(record, tuple(problems))

    bring_model(output, checkpoint, bring, progress)
    return kind_of(checkpoint)


def _model_info(address: HubAddress) -> dict[str, Any]:
    """The hub's answer on a model at a revision: ``sha``, ``siblings`` with sizes, and more."""
    revision = quote(address.revision, safe="")
    url = f"{constants.ENDPOINT}/api/models/{address.repo}/revision/{revision}?blobs=true"
    with explained_errors(address):
        # Answers 429 and 5xx are retried when the server says; an unreachable one is reported.
        response = http_backoff(
            "GET",
            url,
            headers=build_hf_headers(),
            timeout=_TIMEOUT_SECONDS,
            retry_on_exceptions=(),
        )
        hf_raise_for_status(response)
    try:
        info = response.json()
        if _COMMIT.fullmatch(info["sha"]) and isinstance(info["siblings"], list):
            return info
    except (ValueError, KeyError, TypeError):
        pass
    raise StepError("fetch", f"{constants.ENDPOINT} does not answer as a hub: check HF_ENDPOINT")


def _download_blob(files: HubFiles, name: str, advance: Advance) -> None:
    """Downloads a file to the cache's blobs, going on where an interrupted download stopped."""
    metadata = get_hf_file_metadata(
        files.url(name), endpoint=constants.ENDPOINT, retry_on_errors=True
    )
    etag = metadata.etag
    if etag is None or not re.fullmatch(r"[\w.-]+", etag):
        raise FileMetadataError(f"{files.describe(name)} has no usable ETag")
    repo_folder = _repo_folder(files.address)
    blob = _cache() / repo_folder / "blobs" / etag
    lock = _cache() / ".locks" / repo_folder / f"{etag}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            advance(files.size(name))
            return
        partial = blob.with_name(f"{etag}.quantlib.incomplete")
        with partial.open("ab") as file:
            done = file.tell()
            if metadata.size is not None and done > metadata.size:
                done = file.truncate(0)
            advance(done)
            http_get(
                files.url(name),
                file,
                resume_size=done,
                headers=build_hf_headers(),
                expected_size=metadata.size,
                tqdm_class=_reporting_to(advance),
            )
        partial.rename(blob)


def _reporting_to(advance: Advance) -> type:
    """A stand-in for the tqdm class that huggingface_hub reports downloaded bytes to."""

    class Reporter:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> Reporter:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: int) -> None:
            advance(count)

    return Reporter


def _cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def _repo_folder(address: HubAddress) -> str:
    return repo_folder_name(repo_id=address.repo, repo_type="model")
