"""KServe's storage initializer, with a check: vLLM starts on what was published, or not at all.

    python -m quantlib.serving.initializer s3://models/SmolLM2/3f9a… /mnt/models

KServe gives the two arguments to the container of a ``ClusterStorageContainer``, which runs before
vLLM does, with an empty folder that vLLM then reads. Every byte is hashed as it is written there;
no file takes its name before all of them are what the manifest says and the manifest is signed.

Environment, besides what the S3 client reads: ``QUANTLIB_PUBLIC_KEY`` is the key that signatures
must be of, as PEM or the path of it, and ``QUANTLIB_REQUIRE_SIGNATURE=false`` does without one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlib.errors import InvalidInputError, QuantlibError, naming, os_error_line
from quantlib.publishing.published import PublishedFolder, manifest_of
from quantlib.publishing.signing import PublicKey
from quantlib.publishing.verification import Policy, Verified, verify_for_promotion
from quantlib.report.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest
from quantlib.store import LocalStore, open_store

KEY_VARIABLE = "QUANTLIB_PUBLIC_KEY"
REQUIRE_VARIABLE = "QUANTLIB_REQUIRE_SIGNATURE"
WORK_NAME = ".quantlib"
"""Folder within the target that holds what is not verified yet."""

_ANSWERS = {"": True, "1": True, "true": True, "0": False, "false": False}


def bring(source: str, target: Path, key: str, *, require_signature: bool) -> Verified:
    """Brings a published checkpoint into a folder, where it appears verified or not at all.

    Args:
        source: The published folder, which its checkpoint's digest names.
        target: Where it goes: an empty folder, or one that an earlier call was for.
        key: The public key that must have signed, as PEM or the path of it; may be empty.
        require_signature: Refuse an empty ``key``.

    Raises:
        InvalidInputError: The source is no published folder, the key is missing or cannot be read,
            or the target holds other files.
        VerificationError: With everything that is wrong with the checkpoint.
        StoreError: A file cannot be read or written.
        QuantlibError: The target cannot be written to.
    """
    source = source.rstrip("/")
    if not re.fullmatch(r"s3://.+/[0-9a-f]{64}", source):
        raise InvalidInputError.one(
            source,
            "is no published checkpoint in object storage, s3://BUCKET/PREFIX/NAME/DIGEST",
            "let the ClusterStorageContainer claim the prefix of published checkpoints alone",
        )
    if require_signature and not key:
        raise InvalidInputError.one(
            KEY_VARIABLE,
            "is not set, so nothing can be checked with it",
            f"give the release key, or set {REQUIRE_VARIABLE}=false",
        )
    published = PublishedFolder(open_store(source))
    with naming(target), _work_folder(target) as work:
        policy = Policy(PublicKey(_key_file(key, work)) if key else None, require_signature)
        manifest = manifest_of(published)
        _require_unused(target, manifest)
        files = LocalStore(work / "files")
        verified = verify_for_promotion(published, policy, copy=files)
        for file in sorted(files.list(), key=lambda file: file.path == MANIFEST_NAME):
            place = target / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            files.local_path(file.path).replace(place)
    return verified


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """A folder within the target, where alone can be written when the root file system cannot."""
    work = target / WORK_NAME
    shutil.rmtree(work, ignore_errors=True)  # of a call that was killed
    work.mkdir(parents=True)
    before, tempfile.tempdir = tempfile.tempdir, str(work)
    try:
        yield work
    finally:
        tempfile.tempdir = before
        shutil.rmtree(work, ignore_errors=True)


def _key_file(key: str, work: Path) -> Path:
    """A ClusterStorageContainer can mount no volume, so the key may come in the environment."""
    if not key.lstrip().startswith("-----BEGIN"):
        return Path(key)
    path = work / "key.pub"
    path.write_text(key)
    return path


def _require_unused(target: Path, manifest: Manifest) -> None:
    known = {*manifest.files, MANIFEST_NAME, SIGNATURE_NAME}
    found = [file.path for file in LocalStore(target).list()]
    if foreign := sorted(
        path for path in found if path not in known and not path.startswith(f"{WORK_NAME}/")
    ):
        raise InvalidInputError.one(
            str(target),
            f"holds files that are not of the checkpoint: {', '.join(foreign[:5])}",
            "give an empty folder",
        )


def _requires_signature() -> bool:
    value = os.environ.get(REQUIRE_VARIABLE, "").lower()
    if value not in _ANSWERS:
        raise InvalidInputError.one(REQUIRE_VARIABLE, f"is {value!r}", "set it to true or false")
    return _ANSWERS[value]


def main() -> None:
    """Runs the initializer; what it prints last is what the pod's status shows of it."""
    if len(sys.argv) != 3:
        print("usage: python -m quantlib.serving.initializer SOURCE TARGET", file=sys.stderr)
        sys.exit(2)
    # The folder is cleared up as on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _, source, target = sys.argv
    started = time.monotonic()
    try:
        verified = bring(
            source,
            Path(target),
            os.environ.get(KEY_VARIABLE, ""),
            require_signature=_requires_signature(),
        )
    except QuantlibError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {os_error_line(error)}", file=sys.stderr)
        sys.exit(1)
    total = sum(record.bytes for record in verified.manifest.files.values())
    print(
        f"verified {verified.digest}, release {verified.manifest.release} of "
        f"{verified.manifest.name}, signed by {verified.signer or 'nobody who was asked for'}: "
        f"{len(verified.manifest.files)} files, {total / 1e9:.2f} GB "
        f"in {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
