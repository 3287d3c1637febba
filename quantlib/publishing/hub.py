"""Publishes checkpoints to repositories of the Hugging Face hub, or a server that speaks its API.

Everything goes through huggingface_hub: the token (``HF_TOKEN``, or the one that ``hf auth login``
stored) and the endpoint (``HF_ENDPOINT``). A publication is one commit, the manifest in it, and is
named by it. What the hub holds after it is compared with what was sent, by the hub's own digests.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from httpx2 import HTTPError
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quantlib.errors import InvalidInputError, Problem, StoreError
from quantlib.publishing.destination import Draft, Member, Publication
from quantlib.publishing.folder import numbered, stands
from quantlib.publishing.hub_published import OF_THE_HUB
from quantlib.publishing.signing import Signer, sign_manifest
from quantlib.report.manifest import MANIFEST_NAME, SIGNATURE_NAME, parse_manifest
from quantlib.sources import HubAddress, parse_address
from quantlib.store import Store, lease

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

SCHEME = "hf://"
_BUFFER_BYTES = 8 << 20
_REMEDY = "set HF_TOKEN to a token that may write there, or `hf auth login`"


class HubDestination:
    """A repository of models: one model, each publication a commit.

    Args:
        address: ``hf://org/name``.

    Raises:
        InvalidInputError: It is no such address.
    """

    def __init__(self, address: str) -> None:
        parsed = parse_address(address)
        if not isinstance(parsed, HubAddress) or "@" in address:
            what = "names a revision; a publication is a new commit on main"
            raise InvalidInputError.one(address, what, "give hf://org/name")
        self.address = address
        self._repo = parsed.repo
        self._api = HfApi()

    def problems(self) -> list[Problem]:
        """Why this token could not commit there, or make the repository."""
        if not get_token():
            return [Problem(self.address, "there is no token", _REMEDY)]
        try:
            with _explained(self.address):
                try:
                    self._api.auth_check(self._repo, write=True)
                except RepositoryNotFoundError:
                    return self._owner_problems()
        except (InvalidInputError, StoreError) as error:
            return list(getattr(error, "problems", ())) or [Problem(self.address, str(error))]
        return []

    def publish(self, draft: Draft, signer: Signer | None, replace: bool) -> Publication:
        """Commits a checkpoint, unless it is what the repository holds already.

        The repository is made where there is none, for its owner alone to see. Files of what was
        published before go; its commits stay.

        Raises:
            InvalidInputError: The repository is not open to this token, or holds what somebody
                else signed.
            StoreError: A file of the store is damaged, the hub fails, or another publisher
                committed meanwhile.
        """
        where = f"{self.address}/{SIGNATURE_NAME}"
        with lease(draft.store, f"publish/{draft.manifest.name}"), _explained(self.address):
            self._api.create_repo(self._repo, private=True, exist_ok=True)
            before = self._info("main")
            files = _by_name(before)
            manifest, signature = self._read(before, MANIFEST_NAME), None
            if manifest is not None:
                signature = self._read(before, SIGNATURE_NAME)
                if not stands(where, manifest, signature, draft.manifest, signer, replace):
                    release = 1 + _release(manifest, draft.manifest.name)
                    manifest = None
            else:
                release = 1
            if manifest is None:
                manifest = numbered(draft.manifest, release)
                signature = sign_manifest(manifest, signer) if signer else None
            members = _members(draft, manifest, signature)
            if _differing(files, members):
                commit = self._commit(draft, members, before)
                if wrong := _differing(_by_name(self._info(commit)), members):
                    what = f"holds something else after the commit {commit[:12]}: {wrong[0]}"
                    raise StoreError(self.address, f"{what}; publish again")
            else:
                commit = str(before.sha)
        return Publication(f"{self.address}@{commit}", manifest)

    def enter_job(self, job: str, publication: Publication) -> None:
        """Notes what a job of the watcher led to, as a tag."""
        _, _, commit = publication.address.rpartition("@")
        with _explained(self.address):
            self._api.create_tag(self._repo, tag=_job_tag(job), revision=commit, exist_ok=True)

    def published_of(self, job: str) -> str | None:
        """The commit that a job led to; None where there is none."""
        with _explained(self.address):
            try:
                return f"{self.address}@{self._info(_job_tag(job)).sha}"
            except (RevisionNotFoundError, RepositoryNotFoundError):
                return None

    def _owner_problems(self) -> list[Problem]:
        who = self._api.whoami()
        owner = self._repo.partition("/")[0]
        if owner in (who["name"], *(each["name"] for each in who.get("orgs", ()))):
            return []
        what = f"there is no such repository, and {who['name']} can make none of {owner}"
        return [Problem(self.address, what, _REMEDY)]

    def _info(self, revision: str) -> ModelInfo:
        return self._api.model_info(self._repo, revision=revision, files_metadata=True)

    def _read(self, info: ModelInfo, name: str) -> bytes | None:
        if name not in _by_name(info):
            return None
        path = hf_hub_download(self._repo, name, revision=info.sha, endpoint=self._api.endpoint)
        return Path(path).read_bytes()

    def _commit(self, draft: Draft, members: Mapping[str, Member], before: ModelInfo) -> str:
        present = _by_name(before)
        changed = _differing(present, members)
        operations = [
            CommitOperationAdd(name, _opened(draft, members[name]))
            if name in members
            else CommitOperationDelete(name)
            for name in changed
        ]
        published = parse_manifest(_content(members[MANIFEST_NAME]), MANIFEST_NAME)
        with _quiet():
            done = self._api.create_commit(
                self._repo,
                operations,
                commit_message=f"{published.name}, release {published.release}",
                commit_description=f"checkpoint {published.checkpoint}",
                parent_commit=before.sha,
            )
        return done.oid


class _StoredFile(io.RawIOBase):
    """A file of a store, read from where it lies."""

    def __init__(self, store: Store, path: str, size: int) -> None:
        self._store, self._path, self._size, self._at = store, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        buffer[:length] = self._store.read(self._path, self._at, length)
        self._at += length
        return length


def _opened(draft: Draft, member: Member) -> io.BufferedReader | bytes:
    """What the client uploads: bytes at hand, or a file that it reads piece by piece."""
    if member.name in draft.texts or member.name in (MANIFEST_NAME, SIGNATURE_NAME):
        return _content(member)
    path = draft.checkpoint.path(member.name)
    return io.BufferedReader(_StoredFile(draft.store, path, member.record.bytes), _BUFFER_BYTES)


def _content(member: Member) -> bytes:
    return b"".join(member.open())


def _members(draft: Draft, manifest: bytes, signature: bytes | None) -> dict[str, Member]:
    members = [*draft.checkpoint_members(), *draft.text_members()]
    members.append(Member.of(MANIFEST_NAME, manifest))
    if signature is not None:
        members.append(Member.of(SIGNATURE_NAME, signature))
    return {member.name: member for member in members}


def _by_name(info: ModelInfo) -> dict[str, RepoSibling]:
    return {each.rfilename: each for each in info.siblings or ()}


def _differing(present: Mapping[str, RepoSibling], members: Mapping[str, Member]) -> list[str]:
    """Names of files that the hub has and should not, lacks, or has with another digest."""
    strangers = set(present) - set(members) - OF_THE_HUB
    differing = [
        name
        for name, member in members.items()
        if name not in present or not _is_same(present[name], member)
    ]
    return sorted(strangers) + differing


def _is_same(present: RepoSibling, member: Member) -> bool:
    if present.lfs is not None:
        return present.lfs.sha256 == member.record.sha256
    if present.size != member.record.bytes:
        return False
    blob = hashlib.sha1(b"blob %d\0" % member.record.bytes, usedforsecurity=False)  # as git does
    for chunk in member.open():
        blob.update(chunk)
    return present.blob_id == blob.hexdigest()


def _release(manifest: bytes, name: str) -> int:
    """The number of what is there; 0 where that is of another model, or unreadable."""
    try:
        found = parse_manifest(manifest, MANIFEST_NAME)
    except InvalidInputError:
        return 0
    return found.release if found.name == name else 0


def _job_tag(job: str) -> str:
    return f"job-{job.removeprefix('sha256:')}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's remark that files which are read from a store go by plain HTTP."""
    logger = logging.getLogger("huggingface_hub._commit_api")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turns huggingface_hub's errors into ones that say what to do."""
    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError, HfHubHTTPError) as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            what = f"{constants.ENDPOINT} refuses access ({status})"
            raise InvalidInputError.one(where, what, _REMEDY) from error
        if status in (409, 412):
            what = "another publisher committed meanwhile; publish again"
            raise StoreError(where, what) from error
        raise StoreError(where, f"{constants.ENDPOINT} answers {_first_line(error)}") from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error.__cause__, StoreError):
            raise error.__cause__ from error
        what = f"no answer from {constants.ENDPOINT} ({_first_line(error.__cause__ or error)})"
        raise StoreError(where, f"{what}; check the network, the proxy and HF_ENDPOINT") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
