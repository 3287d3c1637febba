"""Writes a published folder: what this process built, its manifest last, whole or not at all.

What is found there is evidence of nothing, whoever can write there may have put it: it is compared
with what was built here, and stands where it is the same; it is never signed.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from quantlib.checks.machine import destination_problems
from quantlib.errors import InvalidInputError, Problem, StoreError
from quantlib.publishing.destination import Draft, Publication
from quantlib.publishing.jobs import enter_job, published_of
from quantlib.publishing.signing import Signer, sign_manifest, signature_state
from quantlib.report.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    checkpoint_files,
    parse_manifest,
    verify_published,
)
from quantlib.store import LocalStore, Store, lease, open_store, transfer
from quantlib.store.transaction import difference


class FolderDestination:
    """A folder, or a prefix in object storage, with a folder in it for every checkpoint.

    Args:
        address: A path, or ``s3://bucket/prefix``.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def problems(self) -> list[Problem]:
        """Why nothing can be written there."""
        return destination_problems(self.address)

    def publish(self, draft: Draft, signer: Signer | None, replace: bool) -> Publication:
        """Writes the folder ``<model name>/<digest>``; see :func:`write_published`."""
        name = draft.manifest.name
        shelf = f"{self.address}/{name}"
        target = open_store(f"{shelf}/{draft.manifest.checkpoint.removeprefix('sha256:')}")
        if isinstance(target, LocalStore):
            _require_writable(target.root.parent)
        with lease(open_store(self.address), f"publish/{name}"):
            manifest = write_published(draft, open_store(shelf), target, signer, replace)
        return Publication(target.address, manifest)

    def enter_job(self, job: str, publication: Publication) -> None:
        """Notes what a job of the watcher led to."""
        digest = parse_manifest(publication.manifest, MANIFEST_NAME).checkpoint
        enter_job(self.address, job, publication.address, digest)

    def published_of(self, job: str) -> str | None:
        """The folder that a job led to; None where there is none, or it is gone."""
        return published_of(self.address, job)


def now() -> datetime:
    """The time that a publication gets."""
    return datetime.now(UTC)


def write_published(
    draft: Draft, shelf: Store, target: Store, signer: Signer | None, replace: bool = False
) -> bytes:
    """Publishes a draft, unless it is published already.

    Where another publication of the checkpoint is there, by another recipe or code, this one takes
    its place, unless that one is signed by somebody whose key is not at hand.

    Args:
        draft: What was built.
        shelf: The folder of all that is published of the model.
        target: The folder to publish to.
        signer: Who signs; None for nobody.
        replace: Whether a signature by somebody else is replaced.

    Returns:
        The manifest that is there.

    Raises:
        InvalidInputError: Something else is there and stays, or what is there is damaged.
        StoreError: It could not be written, or another publisher wrote it meanwhile.
    """
    found = bytes(target.read(MANIFEST_NAME)) if target.exists(MANIFEST_NAME) else None
    signature = bytes(target.read(SIGNATURE_NAME)) if target.exists(SIGNATURE_NAME) else None
    if found is not None:
        where = target.full_address(SIGNATURE_NAME)
        if stands(where, found, signature, draft.manifest, signer, replace):
            verify_published(target)
            return found
        target.delete(MANIFEST_NAME)  # what is half replaced is not published
    _write_files(draft, target)
    manifest = numbered(draft.manifest, 1 + last_release(shelf, found))
    if signer is not None:  # before the manifest, so that nothing is published unsigned
        target.put_bytes(sign_manifest(manifest, signer), SIGNATURE_NAME)
    elif signature is not None:
        target.delete(SIGNATURE_NAME)
    target.put_new(manifest, MANIFEST_NAME)
    _require_whole(target, manifest, signer)
    return manifest


def stands(
    where: str,
    found: bytes,
    signature: bytes | None,
    draft: Manifest,
    signer: Signer | None,
    replace: bool,
) -> bool:
    """Whether what is published already says the same as a draft, and is signed as it should be.

    Args:
        where: Of the signature, for people.
        found: The manifest that is there.
        signature: The signature that is there.
        draft: With any number and time.
        signer: Who signs; None for nobody.
        replace: Whether a signature by somebody else is replaced.

    Raises:
        InvalidInputError: It is signed by somebody whose key is not at hand.
    """
    same = _is_same(found, draft)
    if signature is not None and not replace:
        _require_ours(where, found, signature, signer, same)
    return same and _is_signed(found, signature, signer)


def numbered(draft: Manifest, release: int) -> bytes:
    """The manifest of a draft that is published now."""
    told = {"release": release, "published_at": now().replace(microsecond=0)}
    return draft.model_copy(update=told).to_json()


def last_release(shelf: Store, replaced: bytes | None = None) -> int:
    """The highest number of a release of a model; 0 where nothing is published.

    Args:
        shelf: The folder of all that is published of the model.
        replaced: A manifest that was there until now.
    """
    data = [replaced] if replaced is not None else []
    data += [
        bytes(shelf.read(file.path))
        for file in shelf.list()
        if file.path.count("/") == 1 and file.path.endswith(f"/{MANIFEST_NAME}")
    ]
    parsed = (_parsed(each) for each in data)
    return max((manifest.release for manifest in parsed if manifest is not None), default=0)


def _parsed(manifest: bytes) -> Manifest | None:
    try:
        return parse_manifest(manifest, MANIFEST_NAME)
    except InvalidInputError:
        return None


def _is_same(found: bytes, draft: Manifest) -> bool:
    manifest = _parsed(found)
    return manifest is not None and manifest.decisive() == draft.decisive()


def _is_signed(found: bytes, signature: bytes | None, signer: Signer | None) -> bool:
    if signer is None:
        return True
    return signature is not None and signature_state(found, signature, signer) == "current"


def _require_ours(
    where: str, found: bytes, signature: bytes, signer: Signer | None, same: bool
) -> None:
    """Refuses to take the place of what somebody else has signed."""
    if signer is None:
        if not same:
            what = "signs another publication of this checkpoint, and no key is configured here"
            raise InvalidInputError.one(where, what, "configure the key, or `quantlib unpublish`")
    elif _parsed(found) is not None and signature_state(found, signature, signer) == "foreign":
        raise InvalidInputError.one(
            where,
            "is somebody else's signature",
            "`quantlib sign --replace` puts another one in its place",
        )


def _write_files(draft: Draft, target: Store) -> None:
    files = {} if draft.manifest.by_reference else checkpoint_files(draft.manifest.files)
    present = _files_of_a_killed_run(target, {*files, *draft.texts, SIGNATURE_NAME})
    for name, record in files.items():
        if name not in present or difference(target.record(name), record, "receipt"):
            transfer(draft.store, draft.checkpoint.path(name), target, name, record)
    for name, text in draft.texts.items():
        target.put_bytes(text, name)


def _files_of_a_killed_run(target: Store, expected: set[str]) -> set[str]:
    """What is in the folder already, of the same checkpoint; anything else is refused."""
    found = {file.path for file in target.list()}
    abandoned = {name for name in found if name.startswith(".")}  # a file in the making
    strangers = sorted(found - expected - abandoned)
    if strangers:
        raise InvalidInputError(
            Problem(target.full_address(name), "is no part of the checkpoint", "move it away")
            for name in strangers
        )
    for name in abandoned:
        target.delete(name)
    return found - abandoned


def _require_whole(target: Store, manifest: bytes, signer: Signer | None) -> None:
    """Looks at what is there after writing: two publishers may have written at once."""
    there = bytes(target.read(MANIFEST_NAME)) if target.exists(MANIFEST_NAME) else None
    where = target.full_address(MANIFEST_NAME)
    if there != manifest:
        raise StoreError(where, "another publisher wrote it meanwhile; publish again")
    if signer is not None:
        signature = bytes(target.read(SIGNATURE_NAME)) if target.exists(SIGNATURE_NAME) else b""
        if signature_state(manifest, signature, signer) != "current":
            raise StoreError(
                target.full_address(SIGNATURE_NAME),
                "another publisher wrote it meanwhile; publish again",
            )
    verify_published(target)


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        what = "is not writable"
    except OSError as error:
        writable, what = False, f"cannot be created: {error.strerror}"
    if not writable:
        raise InvalidInputError.one(
            f"publish destination {folder}", what, "give a folder that can be written"
        )
