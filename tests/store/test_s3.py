import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import s3

from quantlib.errors import InvalidInputError, StoreError
from quantlib.store import LocalStore, StepOutput, commit_step, open_store, transfer
from quantlib.store.receipt import FileRecord
from quantlib.store.s3 import S3Store
from quantlib.store.transaction import read_committed

MIB = 1 << 20


@pytest.fixture
def store(s3_address: str) -> S3Store:
    store = open_store(s3_address)
    assert isinstance(store, S3Store)
    return store


@pytest.fixture
def tiny_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some KB are read in many parts."""
    monkeypatch.setattr("quantlib.store.s3_reading.PART_BYTES", 1000)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some MiB are written in many parts."""
    from boto3.s3.transfer import TransferConfig

    parts = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    monkeypatch.setattr("quantlib.store.s3._UPLOAD", parts)
    monkeypatch.setattr("quantlib.store.s3._COPY", parts)


def test_ranged_reads(store: S3Store, tiny_reads: None) -> None:
    data = os.urandom(12_345)
    store.put_bytes(data, "a/b")
    assert store.read("a/b") == data
    assert store.read("a/b", 3, 4) == data[3:7]
    assert store.read("a/b", 1, 7000) == data[1:7001]
    assert store.read("a/b", 12_000) == data[12_000:]
    assert store.read("a/b", 5, 0) == b""
    assert b"".join(store.stream("a/b")) == data
    assert store.size("a/b") == len(data)
    for offset, length in ((12_340, 10), (13_000, 5), (0, 20_000)):
        with pytest.raises(StoreError, match=f"before the range {offset}\\+{length}|before the"):
            store.read("a/b", offset, length)


def test_empty_files(store: S3Store) -> None:
    store.put_bytes(b"", "empty")
    assert store.read("empty") == b""
    assert list(store.stream("empty")) in ([], [bytearray()])
    assert store.size("empty") == 0


def test_parts_are_bounded_in_number(store: S3Store, proxy: s3.Proxy, tiny_reads: None) -> None:
    store.put_bytes(bytes(100_000), "a")
    proxy.requests.clear()
    store.read("a", 0, 100_000)
    assert [r.headers["Range"] for r in proxy.requests].count("bytes=0-999") == 1
    assert len(proxy.requests) == 100
    assert store._pool._max_workers == 8


def test_missing_files_are_named(store: S3Store) -> None:
    for call in (store.size, store.read, store.record, lambda path: list(store.stream(path))):
        with pytest.raises(StoreError, match=r"no/such: there is no such file"):
            call("no/such")
    with pytest.raises(StoreError, match="there is no such file"):
        store.copy_from(store, "no/such", "b", FileRecord(bytes=0, sha256="0" * 64))
    assert not store.holds("no/such", FileRecord(bytes=0, sha256="0" * 64))
    assert not store.exists("no/such")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_paths_stay_within_the_store(store: S3Store, path: str) -> None:
    with pytest.raises(StoreError, match="not a relative path within the store"):
        store.put_bytes(b"", path)


def test_listing_knows_folders_from_names_that_begin_alike(store: S3Store) -> None:
    for path in ("s/b", "s/a", "s-2/c", "t/x"):
        store.put_bytes(b"12", path)
    listed = list(store.list("s"))
    assert sorted(file.path for file in listed) == ["s/a", "s/b"]
    assert {file.bytes for file in listed} == {2}
    assert all(file.modified.tzinfo for file in listed)
    assert sorted(file.path for file in store.list()) == ["s-2/c", "s/a", "s/b", "t/x"]
    store.delete("s/a")
    store.delete("s/a")
    assert not store.exists("s/a")


@pytest.mark.parametrize("size", [1000, 11 * MIB], ids=["one-request", "multipart"])
def test_files_keep_their_digest_through_upload_copy_and_download(
    store: S3Store, proxy: s3.Proxy, small_parts: None, tmp_path: Path, size: int
) -> None:
    data = os.urandom(size)
    local = tmp_path / "file"
    local.write_bytes(data)
    record = FileRecord(bytes=size, sha256=hashlib.sha256(data).hexdigest())
    store.import_file(local, "a/file")
    assert local.exists()
    store.copy_from(store, "a/file", "b/file", record)
    assert proxy.received() == 0  # neither the copy nor its digest takes the bytes here
    assert store.record("a/file") == store.record("b/file") == record
    store.export_file("b/file", tmp_path / "out" / "file")
    assert (tmp_path / "out" / "file").read_bytes() == data
    store.put_file(local, "c/file", record.sha256)
    assert not local.exists()
    uploads = [r for r in proxy.requests if r.method == "POST" and "uploads" in r.path]
    assert len(uploads) == (3 if size > 5 * MIB else 0)


def test_the_server_verifies_what_it_is_sent(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlib.store.s3.base64.b64encode", lambda _: b"A" * 43 + b"=")
    with pytest.raises(StoreError, match="damaged on the way"):
        store.put_bytes(b"data", "a")
    assert not store.exists("a")


def test_a_file_of_another_program_is_hashed(store: S3Store) -> None:
    store.client.put_object(Bucket=store.bucket, Key=store.key("a"), Body=b"abc")
    assert store.record("a") == FileRecord(bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())


def test_a_download_that_is_not_what_was_uploaded_is_refused(
    store: S3Store, tmp_path: Path
) -> None:
    store.client.put_object(
        Bucket=store.bucket, Key=store.key("a"), Body=b"abc", Metadata={"sha256": "0" * 64}
    )
    with pytest.raises(StoreError, match="damaged on the way"):
        store.export_file("a", tmp_path / "a")
    assert list(tmp_path.glob("*a*")) == []


def test_one_of_several_writers_commits(store: S3Store) -> None:
    assert store.put_new(b"one", "receipt")
    assert not store.put_new(b"two", "receipt")
    assert store.put_new(b"one", "receipt")  # its own, after an answer that was lost
    assert store.read("receipt") == b"one"


def test_a_server_without_conditional_writes_is_asked_first(
    store: S3Store, proxy: s3.Proxy
) -> None:
    proxy.break_next(s3.refuse("NotImplemented", 501), "PUT")
    assert store.put_new(b"one", "receipt")
    proxy.break_next(s3.refuse("NotImplemented", 501), "PUT")
    assert not store.put_new(b"two", "receipt")
    assert store.read("receipt") == b"one"


def write(content: bytes) -> Any:
    def work(output: StepOutput) -> None:
        output.local("a.bin").write_bytes(content)
        output.add("a.bin")

    return work


def test_steps_are_committed_and_found_without_reading_their_files(
    store: S3Store, proxy: s3.Proxy
) -> None:
    first = commit_step(store, "fetch", {}, {}, write(b"abc" * 1000))
    proxy.requests.clear()
    assert commit_step(store, "fetch", {}, {}, write(b"other")) == first
    assert proxy.received("blobs/") == 0
    assert list(store.scratch.glob(f"{first.key[:16]}-*")) == []


def test_damaged_files_are_made_again(store: S3Store) -> None:
    first = commit_step(store, "fetch", {}, {}, write(b"abc"))
    store.put_bytes(b"abd", first.path("a.bin"))
    assert read_committed(store, first.step, first.key) is None
    assert commit_step(store, "fetch", {}, {}, write(b"abc")) == first
    assert store.read(first.path("a.bin")) == b"abc"


def test_a_file_that_changes_while_it_is_copied_is_not_copied(
    store: S3Store, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = FileRecord(bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())
    store.put_bytes(b"abc", "a")
    head = store._head

    def changed_after(path: str) -> dict[str, Any]:
        found = head(path)
        store.put_bytes(b"abX", "a")
        return found

    monkeypatch.setattr(store, "_head", changed_after)
    with pytest.raises(StoreError):
        store.copy_from(store, "a", "b", record)
    monkeypatch.undo()
    assert not store.exists("b")


def test_transfer_lets_the_server_copy_and_streams_between_kinds(
    store: S3Store, proxy: s3.Proxy, tmp_path: Path, s3_address: str
) -> None:
    data = os.urandom(10_000)
    record = FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    local, other = LocalStore(tmp_path / "local"), open_store(f"{s3_address}-published")
    local.put_bytes(data, "a")
    transfer(local, "a", store, "a", record)
    proxy.requests.clear()
    transfer(store, "a", other, "b", record)
    assert proxy.received() == 0
    transfer(other, "b", local, "c", record)
    assert local.read("c") == data
    wrong = FileRecord(bytes=len(data), sha256="0" * 64)
    for source, path, target in ((local, "a", store), (store, "a", other), (other, "b", local)):
        with pytest.raises(StoreError, match="not what its receipt says"):
            transfer(source, path, target, "wrong", wrong)
        assert not target.exists("wrong")


def test_unfinished_uploads_are_found_and_removed(store: S3Store) -> None:
    store.client.create_multipart_upload(Bucket=store.bucket, Key=store.key("steps/x"))
    (leftover,) = store.leftovers()
    assert leftover.description == "unfinished upload of steps/x"
    leftover.remove()
    assert list(store.leftovers()) == []


def test_checking_access_leaves_nothing(store: S3Store) -> None:
    store.check_access()
    assert list(store.list()) == []
    assert list(store.leftovers()) == []


@pytest.mark.parametrize(
    "address", ["s3://", "s3:///x", "s3://Bad_Bucket/x", "s3://key:secret@bucket/x"]
)
def test_addresses_that_are_none_are_refused_without_repeating_secrets(address: str) -> None:
    with pytest.raises(InvalidInputError, match="give s3://bucket/prefix") as caught:
        open_store(address)
    assert "secret" not in str(caught.value)


def test_credentials_come_from_a_mounted_file(
    s3_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = tmp_path / "credentials"
    key, secret = s3.READER
    mounted.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    open_store(f"{s3_address}/a").put_bytes(b"data", "name")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(mounted))
    reader = open_store(f"{s3_address}/a")
    assert bytes(reader.read("name")) == b"data"
    with pytest.raises(StoreError, match="permission"):  # these are the reader's
        reader.put_bytes(b"other", "name")
