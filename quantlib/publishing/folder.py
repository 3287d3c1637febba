"""Writes a published folder: what this process built, its manifest last, whole or not at all.

What is found there is evidence of nothing, whoever can write there may have put it: it is compared
with what was built here, and stands where it is the same; it is never signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from quantlib.errors import InvalidInputError, Problem, StoreError
from quantlib.publishing.signing import Signer, sign_manifest, signature_state
from quantlib.report.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    checkpoint_files,
    parse_manifest,
    verify_published,
)
from quantlib.store import FileRecord, Receipt, Store, transfer
from quantlib.store.transaction import difference


@dataclass(frozen=True)
class Draft:
    """What was built: a published folder but for its number and time.

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


def now() -> datetime:
    """The time that a publication gets."""
    return datetime.now(UTC)


def record_of(data: bytes) -> FileRecord:
    """Size and sha256 of some bytes."""
    return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


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
        same = _is_same(found, draft.manifest)
        if signature is not None and not replace:
            _require_ours(target, found, signature, signer, same)
        if same and _is_signed(found, signature, signer):
            verify_published(target)
            return found
        target.delete(MANIFEST_NAME)  # what is half replaced is not published
    _write_files(draft, target)
    manifest = draft.manifest.model_copy(
        update={
            "release": 1 + last_release(shelf, found),
            "published_at": now().replace(microsecond=0),
        }
    ).to_json()
    if signer is not None:  # before the manifest, so that nothing is published unsigned
        target.put_bytes(sign_manifest(manifest, signer), SIGNATURE_NAME)
    elif signature is not None:
        target.delete(SIGNATURE_NAME)
    target.put_new(manifest, MANIFEST_NAME)
    _require_whole(target, manifest, signer)
    return manifest


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
    target: Store, found: bytes, signature: bytes, signer: Signer | None, same: bool
) -> None:
    """Refuses to take the place of what somebody else has signed."""
    where = target.full_address(SIGNATURE_NAME)
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
