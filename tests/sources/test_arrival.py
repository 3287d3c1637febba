"""Models come file by file: what has arrived stays, and a disk holds only what is on its way."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import s3

from quantlib.checkpoint.source import StoreSource
from quantlib.errors import InvalidInputError, StepError, StoreError
from quantlib.sources import arrival
from quantlib.steps.fetch import fetch
from quantlib.store import LocalStore, Store, open_store

SHARDS = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
WriteModel = Callable[..., Path]


@pytest.fixture
def model(write_model: WriteModel, tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", shards=3, elements=65536)


def content(store: Store, receipt) -> dict[str, bytes]:
    return {name: bytes(store.read(receipt.path(name))) for name in receipt.files}


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def upload(folder: Path, address: str) -> None:
    """As another program does, without our digests."""
    store = open_store(address)
    for path in folder.iterdir():
        store.client.upload_file(str(path), store.bucket, store.key(path.name))


def uploads(proxy: s3.Proxy, *, copied: bool) -> list[s3.Request]:
    """The requests that made blobs: by the server's own copy, or by sending them."""
    return [
        request
        for request in proxy.requests
        if request.method == "PUT"
        and "/blobs/" in request.path
        and ("x-amz-copy-source" in {name.lower() for name in request.headers}) == copied
    ]


def test_another_run_takes_what_is_missing(hub, model, store, silent, tmp_path: Path) -> None:
    """As a pod does that was evicted, whose disk is gone."""
    hub.load(model)
    sound = hub.files[SHARDS[1]]
    hub.sent[SHARDS[1]] = sound[:-2] + b"\x01\x02"
    with pytest.raises(StepError, match=f"damaged on the way and dropped: {SHARDS[1]}"):
        fetch(store, "hf://org/tiny", silent)
    assert list(store.list("steps")) == []
    shutil.rmtree(tmp_path / "cache")
    del hub.sent[SHARDS[1]]
    hub.requests.clear()
    receipt = fetch(store, "hf://org/tiny", silent)
    assert content(store, receipt) == on_disk(model)
    whole = [name for name in SHARDS if None in hub.bytes_requested(name)]
    assert whole == [SHARDS[1]]
    assert list(store.list("partial")) == []


def test_the_cache_is_emptied_behind_a_store_elsewhere(
    hub, model, silent, tmp_path: Path, s3_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.load(model)
    monkeypatch.setattr(arrival, "AT_ONCE", 1)
    most = 0
    cache = tmp_path / "cache"

    def weights() -> int:
        return sum(
            path.stat().st_size > 100_000 for path in cache.rglob("blobs/*") if path.is_file()
        )

    from quantlib.sources.hub import HubFiles

    download = HubFiles.download

    def watched(self, name, advance) -> None:
        nonlocal most
        download(self, name, advance)
        most = max(most, weights())

    monkeypatch.setattr(HubFiles, "download", watched)
    store = open_store(s3_address)
    receipt = fetch(store, "hf://org/tiny", silent)
    assert content(store, receipt) == on_disk(model)
    assert (most, weights()) == (1, 0)
    local = LocalStore(tmp_path / "store")
    assert fetch(local, "hf://org/tiny", silent).digest() is not None
    assert weights() == 3  # a folder shares them with the cache


def test_one_server_copies_what_it_has(
    model, silent, proxy: s3.Proxy, s3_address: str, tmp_path: Path
) -> None:
    upload(model, f"{s3_address}/source")
    store = open_store(f"{s3_address}/store")
    proxy.requests.clear()
    receipt = fetch(store, f"{s3_address}/source", silent)
    assert content(store, receipt) == on_disk(model)
    assert receipt.facts["tensors"] == 6
    assert len(uploads(proxy, copied=True)) == len(receipt.files)
    assert uploads(proxy, copied=False) == []


def test_a_folder_gets_a_model_from_a_bucket(
    model, silent, proxy: s3.Proxy, s3_address: str, tmp_path: Path
) -> None:
    upload(model, s3_address)
    store = LocalStore(tmp_path / "store")
    receipt = fetch(store, s3_address, silent)
    assert content(store, receipt) == on_disk(model)
    proxy.requests.clear()
    assert fetch(store, s3_address, silent) == receipt
    assert proxy.received(SHARDS[0]) < 10_000


def test_a_run_that_failed_goes_on(
    model, silent, proxy: s3.Proxy, s3_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(model, f"{s3_address}/source")
    store = open_store(f"{s3_address}/store")
    copy_from, left = type(store).copy_from, [2]

    def breaks(self, other, source, *rest) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StoreError(source, "went away")
        copy_from(self, other, source, *rest)

    monkeypatch.setattr(arrival, "AT_ONCE", 1)
    with monkeypatch.context() as broken, pytest.raises(StoreError, match="went away"):
        broken.setattr(type(store), "copy_from", breaks)
        fetch(store, f"{s3_address}/source", silent)
    proxy.requests.clear()
    receipt = fetch(store, f"{s3_address}/source", silent)
    assert content(store, receipt) == on_disk(model)
    assert len(uploads(proxy, copied=True)) == len(receipt.files) - 2


def test_what_changes_under_a_copy_is_refused(
    model, silent, proxy: s3.Proxy, s3_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(model, f"{s3_address}/source")
    listed = StoreSource.__init__

    def stale(self, store: Store) -> None:
        listed(self, store)
        self.files = {
            name: dataclasses.replace(file, version="0" * 32) for name, file in self.files.items()
        }

    monkeypatch.setattr(StoreSource, "__init__", stale)
    store = open_store(f"{s3_address}/store")
    with pytest.raises(StoreError):
        fetch(store, f"{s3_address}/source", silent)
    assert list(store.list("steps")) == []


def test_nan_in_a_bucket_is_found(
    write_model: WriteModel, silent, s3_address: str, tmp_path: Path
) -> None:
    spoil = {"blocks.0.a": float("nan"), "blocks.2.b": float("inf")}
    upload(write_model(tmp_path / "nan", shards=3, spoil=spoil), f"{s3_address}/source")
    for store in (open_store(f"{s3_address}/store"), LocalStore(tmp_path / "store")):
        with pytest.raises(InvalidInputError) as refused:
            fetch(store, f"{s3_address}/source", silent)
        assert sorted(p.where.rpartition(" ")[2] for p in refused.value.problems) == sorted(spoil)
        assert list(store.list("steps")) == []
