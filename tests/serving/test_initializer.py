"""The storage initializer against a real S3 server: what it takes, and what it leaves."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_runs import sign

from quantlib.errors import InvalidInputError, QuantlibError, VerificationError
from quantlib.publishing.published import PublishedFolder
from quantlib.publishing.signing import KeySigner
from quantlib.publishing.verification import Policy, verify_for_promotion
from quantlib.report.manifest import MANIFEST_NAME, SIGNATURE_NAME
from quantlib.serving.initializer import bring
from quantlib.store import LocalStore, Store, open_store

pytestmark = pytest.mark.slow

WEIGHTS = "model.safetensors"


@pytest.fixture
def published(make_run: Any, publish_run: Any, s3_address: str, keys: Any) -> Store:
    """A published checkpoint in a bucket, signed with the release key."""
    published = publish_run(make_run(), s3_address)
    sign(published, KeySigner(keys.private))
    return published


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The empty folder that KServe mounts."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def content_of(store: Store) -> dict[str, bytes]:
    return {file.path: bytes(store.read(file.path)) for file in store.list()}


def refused(published: Store, target: Path, keys: Any) -> list[str]:
    """The lines of the refusal, which leaves nothing behind."""
    with pytest.raises(VerificationError) as caught:
        bring(published.address, target, str(keys.public), require_signature=True)
    assert list(target.iterdir()) == []
    return str(caught.value).replace(f"{published.address}/", "").splitlines()


def call(
    source: str, target: Path, **environment: str
) -> tuple[subprocess.Popen[str], Callable[[], tuple[int, str, str]]]:
    """The command as KServe starts it: nothing but the target can be written to."""
    program = (
        "import sys; from quantlib.serving.initializer import main; main(); "
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, source, str(target)],
        env=os.environ | {"TMPDIR": "/proc", "HOME": "/proc"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def ended() -> tuple[int, str, str]:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    return process, ended


def test_a_checkpoint_is_brought_byte_for_byte(published: Store, target: Path, keys: Any) -> None:
    verified = bring(f"{published.address}/", target, str(keys.public), require_signature=True)
    assert (verified.signer or "").startswith("key ")
    assert content_of(LocalStore(target)) == content_of(published)
    again = verify_for_promotion(
        PublishedFolder(LocalStore(target)), Policy(digest=verified.digest)
    )
    assert again.manifest == verified.manifest
    assert {stat.S_IMODE(file.stat().st_mode) for file in target.iterdir()} == {0o644}


def test_each_byte_is_fetched_once(published: Store, target: Path, keys: Any, proxy: Any) -> None:
    proxy.requests.clear()
    bring(published.address, target, str(keys.public), require_signature=True)
    assert proxy.received(WEIGHTS) == published.size(WEIGHTS)


def test_one_changed_byte_keeps_all_of_it_out(published: Store, target: Path, keys: Any) -> None:
    data = bytes(published.read(WEIGHTS))
    changed = data[:-1] + b"?"
    published.put_bytes(changed, WEIGHTS)
    found, expected = (hashlib.sha256(each).hexdigest()[:12] for each in (changed, data))
    assert refused(published, target, keys) == [
        f"{WEIGHTS}: its sha256 is {found}…, not the manifest's {expected}…"
    ]


def test_a_missing_file_is_named(published: Store, target: Path, keys: Any) -> None:
    published.delete(WEIGHTS)
    assert refused(published, target, keys) == [f"{WEIGHTS}: there is no such file"]


def test_a_file_too_many_is_named(published: Store, target: Path, keys: Any) -> None:
    published.put_bytes(b"import os", "modeling_tiny.py")
    assert refused(published, target, keys) == ["modeling_tiny.py: is not in the manifest"]


def test_another_key_is_refused(
    published: Store, target: Path, make_keys: Callable[..., Any]
) -> None:
    [line] = refused(published, target, make_keys("other"))
    assert line.startswith(f"{SIGNATURE_NAME}: is no signature of key ")


def test_a_checkpoint_that_nobody_signed_is_refused(
    published: Store, target: Path, keys: Any
) -> None:
    published.delete(SIGNATURE_NAME)
    assert refused(published, target, keys) == [
        f"{SIGNATURE_NAME}: there is no such file: the checkpoint is not signed"
    ]


def test_a_folder_named_by_another_digest_is_refused(
    published: Store, target: Path, keys: Any
) -> None:
    other = open_store(f"{published.address.rpartition('/')[0]}/{'0' * 64}")
    for path, data in content_of(published).items():
        other.put_bytes(data, path)
    [line] = refused(other, target, keys)
    assert f"is not named by its checkpoint's digest, sha256:{published.address[-64:]}" in line


@pytest.mark.parametrize(
    "source", ["s3://bucket/models/latest", f"pvc://claim/{'0' * 64}", f"/mnt/{'0' * 64}", ""]
)
def test_an_address_without_a_digest_is_refused(source: str, target: Path) -> None:
    with pytest.raises(InvalidInputError, match="is no published checkpoint in object storage"):
        bring(source, target, "", require_signature=False)


def test_no_key_is_refused_unless_that_is_asked_for(published: Store, target: Path) -> None:
    with pytest.raises(InvalidInputError, match="QUANTLIB_PUBLIC_KEY: is not set"):
        bring(published.address, target, "", require_signature=True)
    verified = bring(published.address, target, "", require_signature=False)
    assert (verified.signed, verified.signer) == (True, None)


def test_a_folder_in_use_is_left_alone(published: Store, target: Path, keys: Any) -> None:
    (target / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"not of the checkpoint: notes\.txt; give"):
        bring(published.address, target, str(keys.public), require_signature=True)
    assert [file.name for file in target.iterdir()] == ["notes.txt"]


def test_a_full_disk_is_said(published: Store, keys: Any, mount: Callable[..., Path]) -> None:
    target = mount(Path(keys.public).parent / "small", "-t", "tmpfs", "-o", "size=48k", "tmpfs")
    with pytest.raises(QuantlibError, match="No space left on device"):
        bring(published.address, target, str(keys.public), require_signature=True)
    assert list(target.iterdir()) == []


def test_the_command_takes_the_key_from_its_environment(
    published: Store, target: Path, keys: Any
) -> None:
    key = keys.public.read_text()
    _, ended = call(f"{published.address}/", target, QUANTLIB_PUBLIC_KEY=key)
    code, out, err = ended()
    assert (code, err) == (0, "")
    assert out.startswith(f"verified sha256:{published.address[-64:]}, release ")
    assert "signed by key " in out
    assert content_of(LocalStore(target)) == content_of(published)


def test_the_command_fails_in_one_line(published: Store, target: Path, keys: Any) -> None:
    published.put_bytes(b"other", WEIGHTS)
    _, ended = call(published.address, target, QUANTLIB_PUBLIC_KEY=str(keys.public))
    code, out, err = ended()
    assert (code, out) == (1, "")
    assert err == f"error: {published.address}/{WEIGHTS}: holds 5 bytes, not 70000\n"
    assert list(target.iterdir()) == []
    _, ended = call(published.address, target, QUANTLIB_REQUIRE_SIGNATURE="perhaps")
    assert ended()[0] == 2


@pytest.mark.parametrize(
    ("number", "left"), [(signal.SIGKILL, [".quantlib"]), (signal.SIGTERM, [])]
)
def test_who_was_stopped_starts_again(
    published: Store,
    target: Path,
    keys: Any,
    proxy: Any,
    number: signal.Signals,
    left: list[str],
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hang(*_: Any) -> bool:
        asked.set()
        go_on.wait(30)
        return False

    proxy.break_next(hang, "GET", part=WEIGHTS)
    process, ended = call(published.address, target, QUANTLIB_PUBLIC_KEY=str(keys.public))
    assert asked.wait(60)
    while not list(target.glob(".quantlib/files/*")):
        time.sleep(0.05)
    process.send_signal(number)
    go_on.set()
    ended()
    assert [file.name for file in target.iterdir()] == left
    (target / MANIFEST_NAME).write_text("of a call that was stopped while it moved files")
    bring(published.address, target, str(keys.public), require_signature=True)
    assert content_of(LocalStore(target)) == content_of(published)
