"""Every operation of the store while the network and the server misbehave."""

import hashlib
import os
from pathlib import Path

import pytest
import s3

from quantlib.errors import StoreError
from quantlib.store import StepOutput, commit_step, open_store
from quantlib.store.receipt import FileRecord
from quantlib.store.s3 import S3Store
from quantlib.store.transaction import read_committed

DATA = os.urandom(9 << 20)
RECORD = FileRecord(bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
FAULTS = [s3.drop, s3.lose_answer, s3.truncate, s3.overloaded, s3.delay]


@pytest.fixture(autouse=True)
def many_quick_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from boto3.s3.transfer import TransferConfig

    monkeypatch.setattr("quantlib.store.s3_reading.PART_BYTES", 1 << 20)
    parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
    monkeypatch.setattr("quantlib.store.s3._UPLOAD", parts)
    monkeypatch.setattr("quantlib.store.s3._COPY", parts)
    # The waits between attempts, as if by a quicker clock.
    monkeypatch.setattr(
        "botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.02
    )


@pytest.fixture
def store(s3_address: str) -> S3Store:
    store = open_store(s3_address)
    assert isinstance(store, S3Store)
    return store


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("times", [1, 3])
def test_reads_come_through(store: S3Store, proxy: s3.Proxy, fault: s3.Fault, times: int) -> None:
    store.put_bytes(DATA, "a")
    proxy.break_next(fault, "GET", times)
    assert store.read("a", 0, len(DATA)) == DATA
    proxy.break_next(fault, "GET", times)
    assert store.read("a", 123, 4_000_000) == DATA[123:4_000_123]
    proxy.break_next(fault, "GET", times)
    assert b"".join(store.stream("a")) == DATA
    assert proxy.faults == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_uploads_and_copies_come_through(
    store: S3Store, proxy: s3.Proxy, tmp_path: Path, fault: s3.Fault, method: str
) -> None:
    local = tmp_path / "file"
    local.write_bytes(DATA)
    proxy.break_next(fault, method)
    store.import_file(local, "a", RECORD.sha256)
    assert store.record("a") == RECORD
    proxy.break_next(fault, method)
    store.copy_from(store, "a", "b", RECORD)
    assert store.read("b", 0, len(DATA)) == DATA
    assert store.record("b") == RECORD
    assert proxy.faults == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_commits_come_through(store: S3Store, proxy: s3.Proxy, fault: s3.Fault) -> None:
    proxy.break_next(fault, "PUT", part="steps/")
    receipt = commit_step(store, "fetch", {}, {}, write_file)
    assert read_committed(store, receipt.step, receipt.key) == receipt
    assert proxy.faults == []


def write_file(output: StepOutput) -> None:
    output.local("a.safetensors").write_bytes(DATA)
    output.add("a.safetensors", sha256=RECORD.sha256)


def dead(handler: object, body: bytes) -> bool:
    return s3.drop(handler, body)  # type: ignore[arg-type]


@pytest.mark.parametrize("requests_before", range(6))
def test_a_server_that_dies_leaves_no_half_step_and_the_next_run_completes(
    store: S3Store, proxy: s3.Proxy, requests_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = iter(range(10**6))

    def is_dead(request: s3.Request) -> bool:
        return request.method in ("PUT", "POST") and next(writes) >= requests_before

    proxy.faults = [(is_dead, dead)] * 10_000
    with pytest.raises(StoreError, match=r"cannot be reached"):
        commit_step(store, "fetch", {}, {}, write_file)
    proxy.faults = []
    assert list(store.list("steps")) == []
    receipt = commit_step(store, "fetch", {}, {}, write_file)
    assert receipt.files["a.safetensors"] == RECORD
    assert store.read(receipt.path("a.safetensors"), 0, len(DATA)) == DATA


def test_a_failed_upload_is_aborted(store: S3Store, proxy: s3.Proxy, tmp_path: Path) -> None:
    local = tmp_path / "file"
    local.write_bytes(DATA)
    proxy.break_next(s3.refuse("InternalError", 500), "PUT", times=16)
    with pytest.raises(StoreError, match="InternalError"):
        store.put_file(local, "a", RECORD.sha256)
    assert local.exists()
    assert not store.exists("a")
    assert list(store.leftovers()) == []


def test_a_body_that_never_ends_is_given_up(
    store: S3Store, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlib.store.s3_reading.time.sleep", lambda _: None)

    def nothing(handler: s3._Handler, body: bytes) -> bool:
        status, headers, content = handler.forward(body)
        handler.answer(status, headers, content, limit=0)
        return s3.drop(handler, body)

    store.put_bytes(b"abc", "a")
    proxy.break_next(nothing, "GET", times=8)
    with pytest.raises(StoreError, match="a: breaks off at byte 0"):
        store.read("a", 0, 3)
