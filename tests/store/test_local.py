import os
from pathlib import Path

import pytest

from quantlib.errors import StoreError
from quantlib.store import LocalStore


def test_ranged_reads(store: LocalStore) -> None:
    store.put_bytes(b"0123456789", "a/b")
    assert store.read("a/b") == b"0123456789"
    assert store.read("a/b", 3, 4) == b"3456"
    assert store.read("a/b", 8) == b"89"
    assert b"".join(store.stream("a/b", chunk_bytes=3)) == b"0123456789"
    assert store.size("a/b") == 10
    with pytest.raises(StoreError, match="ends 2 bytes before the range 8\\+4"):
        store.read("a/b", 8, 4)


def test_missing_files_are_named(store: LocalStore) -> None:
    for call in (store.size, store.read, lambda path: list(store.stream(path))):
        with pytest.raises(StoreError, match=r"no/such: there is no such file"):
            call("no/such")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_paths_stay_within_the_store(store: LocalStore, path: str) -> None:
    with pytest.raises(StoreError, match="not a relative path within the store"):
        store.put_bytes(b"", path)


def test_weights_are_linked_and_small_files_copied(store: LocalStore, tmp_path: Path) -> None:
    for name, linked in (("w.safetensors", True), ("config.json", False)):
        source = tmp_path / name
        source.write_bytes(b"content")
        store.import_file(source, f"blobs/of-{name[0]}")
        store.export_file(f"blobs/of-{name[0]}", tmp_path / "out" / name)
        exported = tmp_path / "out" / name
        assert exported.read_bytes() == b"content"
        assert os.path.samefile(source, exported) is linked


def test_list_is_sorted_and_delete_is_idempotent(store: LocalStore) -> None:
    for path in ("s/b", "s/a", "s/c/d", "t/x"):
        store.put_bytes(b"", path)
    assert [file.path for file in store.list("s")] == ["s/a", "s/b", "s/c/d"]
    store.delete("s/a")
    store.delete("s/a")
    assert not store.exists("s/a")


def test_a_file_is_on_the_disk_before_its_name_is(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, link = os.fsync, os.link

    def noted_fsync(descriptor: int) -> None:
        order.append("fsync")
        fsync(descriptor)

    def noted_link(source: Path, target: Path) -> None:
        order.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "link", noted_link)
    assert store.put_new(b"receipt", "steps/a")
    assert order == ["fsync", "link", "fsync"]


def test_without_hard_links_a_name_is_given_once(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert store.put_new(b"one", "a")
    assert store.put_new(b"one", "a")
    assert not store.put_new(b"two", "a")
    assert bytes(store.read("a")) == b"one"


def test_a_store_holds_what_was_recorded(store: LocalStore) -> None:
    record = store.put_stream([b"abc"], "a")
    assert store.holds("a", record)
    assert not store.holds("b", record)
    for other in (b"abd", b"abcd", b""):
        store.put_bytes(other, "a")
        assert not store.holds("a", record)
