import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from quantlib.errors import InvalidInputError, StoreError
from quantlib.runtime.usage import usage
from quantlib.store import (
    LocalStore,
    Receipt,
    StepOutput,
    Store,
    commit_step,
    open_store,
    read_lineage,
    run_facts,
)


@pytest.fixture(params=["folder", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return LocalStore(tmp_path / "store")
    return open_store(str(request.getfixturevalue("s3_address")))


def write(content: bytes, calls: list[int] | None = None):
    def work(output: StepOutput) -> None:
        if calls is not None:
            calls.append(1)
        output.local("a.bin").write_bytes(content)
        output.add("a.bin")
        output.facts["length"] = len(content)

    return work


def test_a_committed_step_is_not_run_again(any_store: Store) -> None:
    calls: list[int] = []
    first = commit_step(any_store, "fetch", {"x": 1}, {}, write(b"abc", calls))
    second = commit_step(any_store, "fetch", {"x": 1}, {}, write(b"abc", calls))
    assert first == second
    assert len(calls) == 1
    assert any_store.read(first.path("a.bin")) == b"abc"
    assert first.files["a.bin"].bytes == 3
    assert run_facts(any_store, first)["seconds"] >= 0


def test_what_a_run_moved_and_its_time_on_devices_are_noted(store: LocalStore) -> None:
    def work(output: StepOutput) -> None:
        output.gpus = 2
        time.sleep(0.05)
        store.put_bytes(bytes(100), "elsewhere")
        store.read("elsewhere")
        output.add_bytes("a.bin", bytes(30))

    spent = usage.gpu_seconds
    receipt = commit_step(store, "quantize", {}, {}, work, {"device": "cuda"})
    facts = run_facts(store, receipt)
    assert (facts["read_bytes"], facts["written_bytes"]) == (100, 130)
    assert facts["gpu_seconds"] == pytest.approx(2 * facts["seconds"], abs=0.01)
    assert usage.gpu_seconds - spent == pytest.approx(facts["gpu_seconds"], abs=0.01)
    on_cpu = commit_step(store, "quantize", {}, {}, work, {"device": "cpu"})
    assert "gpu_seconds" not in run_facts(store, on_cpu)


def test_content_lies_under_its_digest_once(any_store: Store) -> None:
    receipts = [commit_step(any_store, step, {}, {}, write(b"abc")) for step in ("fetch", "plan")]
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert {receipt.path("a.bin") for receipt in receipts} == {f"blobs/sha256/{digest}"}
    assert [file.path for file in any_store.list("blobs")] == [f"blobs/sha256/{digest}"]


def test_every_input_of_the_key_makes_other_work(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = commit_step(store, "fetch", {"x": 1}, {}, write(b"abc"))
    others = [
        commit_step(store, "plan", {"x": 1}, {}, write(b"abc")),
        commit_step(store, "fetch", {"x": 2}, {}, write(b"abc")),
        commit_step(store, "fetch", {"x": 1}, {"model": base}, write(b"abc")),
        commit_step(store, "fetch", {"x": 1}, {}, write(b"abc"), {"threads": 2}),
    ]
    monkeypatch.setattr("quantlib.store.transaction.code_versions", lambda: {"quantlib": "other"})
    others.append(commit_step(store, "fetch", {"x": 1}, {}, write(b"abc")))
    assert len({receipt.key for receipt in [base, *others]}) == 6


def test_where_a_step_ran_is_recorded_and_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for name in ("registry.example/a@sha256:1", "registry.example/b@sha256:2"):
        monkeypatch.setenv("QUANTLIB_IMAGE", name)
        store = LocalStore(tmp_path / name[-1])
        fetched = commit_step(store, "fetch", {}, {}, write(b"abc"))
        made.append((fetched, commit_step(store, "plan", {}, {"model": fetched}, write(b"abc"))))
    (one, after_one), (two, after_two) = made
    assert one.made_by.image == "registry.example/a@sha256:1"
    assert one.made_by.hardware and "python" in one.made_by.versions
    assert one.digest() != two.digest()
    assert (one.key, after_one.key) == (two.key, after_two.key)


def test_equal_work_has_an_equal_digest_wherever_the_store_is(tmp_path: Path) -> None:
    one = commit_step(LocalStore(tmp_path / "1"), "fetch", {"x": 1}, {}, write(b"abc"))
    two = commit_step(LocalStore(tmp_path / "2"), "fetch", {"x": 1}, {}, write(b"abc"))
    assert one.digest() == two.digest()


@pytest.mark.parametrize("damage", ["change", "truncate", "remove"])
def test_damaged_files_are_made_again(store: LocalStore, damage: str) -> None:
    calls: list[int] = []
    receipt = commit_step(store, "fetch", {}, {}, write(b"abc", calls))
    path = store.local_path(receipt.path("a.bin"))
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(b"abd" if damage == "change" else b"ab")
    again = commit_step(store, "fetch", {}, {}, write(b"abc", calls))
    assert len(calls) == 2
    assert again == receipt
    assert store.read(receipt.path("a.bin")) == b"abc"


@pytest.mark.parametrize("torn", [b"", b'{"schema": "quantlib/rec', b"\xff\x00", b"[" * 100_000])
def test_a_torn_receipt_counts_as_none(any_store: Store, torn: bytes) -> None:
    receipt = commit_step(any_store, "fetch", {}, {}, write(b"abc"))
    any_store.put_bytes(torn, receipt.address)
    calls: list[int] = []
    assert commit_step(any_store, "fetch", {}, {}, write(b"abc", calls)) == receipt
    assert calls == [1]
    assert bytes(any_store.read(receipt.address)) == receipt.to_json()


def test_a_failing_step_leaves_no_receipt_and_no_scratch(store: LocalStore) -> None:
    def work(output: StepOutput) -> None:
        output.local("a.bin").write_bytes(b"half")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        commit_step(store, "fetch", {}, {}, work)
    assert list(store.scratch.iterdir()) == []
    assert list(store.list("steps")) == []
    assert list(store.list("leases")) == []


SLEEPER = textwrap.dedent(
    """
    import sys, time
    from quantlib.store import commit_step, open_store
    def work(output):
        output.local("a.bin").write_bytes(b"half")
        print("writing", flush=True)
        time.sleep(float(sys.argv[2]))
        output.local("a.bin").write_bytes(b"whole")
        output.add("a.bin")
        output.facts["length"] = 5
    commit_step(open_store(sys.argv[1]), "fetch", {}, {}, work)
    """
)


def sleeper(store: Store, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, store.address, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_killed_step_is_started_afresh_and_its_scratch_removed(store: LocalStore) -> None:
    process = sleeper(store, 60)
    assert len([each for each in store.scratch.iterdir() if each.is_dir()]) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    receipt = commit_step(store, "fetch", {}, {}, write(b"whole"))
    assert store.read(receipt.path("a.bin")) == b"whole"
    assert list(store.scratch.iterdir()) == []


def test_two_starts_of_the_same_work_do_it_once(
    any_store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    process = sleeper(any_store, 2)
    calls: list[int] = []
    receipt = commit_step(any_store, "fetch", {}, {}, write(b"whole", calls))
    assert process.wait() == 0
    assert calls == []
    assert bytes(any_store.read(receipt.path("a.bin"))) == b"whole"
    assert f"process {process.pid} on" in capfd.readouterr().err


def test_work_of_a_killed_process_is_taken_over_at_once(any_store: Store) -> None:
    process = sleeper(any_store, 60)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    started = time.monotonic()
    commit_step(any_store, "fetch", {}, {}, write(b"whole"))
    assert time.monotonic() - started < 20


def without_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a network had parted the two runs."""
    import contextlib

    monkeypatch.setattr(
        "quantlib.store.transaction.lease", lambda *_, **__: contextlib.nullcontext()
    )


def test_a_late_writer_changes_nothing_that_is_committed(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_leases(monkeypatch)
    inner: list[Receipt] = []

    def late(output: StepOutput) -> None:
        inner.append(commit_step(any_store, "fetch", {}, {}, write(b"AAAA")))
        write(b"BBBB")(output)

    with pytest.raises(StoreError, match=r"other bytes in a\.bin") as caught:
        commit_step(any_store, "fetch", {}, {}, late)
    assert inner[0].digest() in str(caught.value)
    assert bytes(any_store.read(inner[0].path("a.bin"))) == b"AAAA"
    assert Receipt.from_json(any_store.read(inner[0].address)) == inner[0]
    (refused,) = [f for f in any_store.list("runs") if "/refused-" in f.path]
    other = Receipt.from_json(any_store.read(refused.path))
    assert other.digest() in str(caught.value)
    assert other.files != inner[0].files


def test_a_late_writer_of_equal_bytes_takes_what_is_committed(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_leases(monkeypatch)
    inner: list[Receipt] = []

    def late(output: StepOutput) -> None:
        monkeypatch.setenv("QUANTLIB_IMAGE", "first")
        inner.append(commit_step(any_store, "fetch", {}, {}, write(b"AAAA")))
        monkeypatch.setenv("QUANTLIB_IMAGE", "second")
        write(b"AAAA")(output)

    assert commit_step(any_store, "fetch", {}, {}, late) == inner[0]


def test_many_threads_commit_one_step_once(store: LocalStore) -> None:
    calls: list[int] = []
    threads = [
        threading.Thread(target=lambda: commit_step(store, "fetch", {}, {}, write(b"abc", calls)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


def test_a_blob_that_gc_has_named_is_written_again(any_store: Store) -> None:
    from quantlib.store.condemned import condemn

    receipt = commit_step(any_store, "fetch", {}, {}, write(b"abc"))
    path = receipt.path("a.bin")
    before = {file.path: file for file in any_store.list("blobs")}[path]
    condemn(any_store, {path: before.version})
    time.sleep(1.1)  # S3 tells time in seconds
    commit_step(any_store, "plan", {}, {}, write(b"abc"))
    after = {file.path: file for file in any_store.list("blobs")}[path]
    assert after.modified > before.modified


def test_files_removed_while_a_step_ran_are_no_result(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(output: StepOutput) -> None:
        write(b"abc")(output)
        store.delete(output.files["a.bin"].blob)

    with pytest.raises(StoreError, match="removed meanwhile; run again"):
        commit_step(store, "fetch", {}, {}, work)
    assert list(store.list("steps")) == []


def test_the_memory_of_children_counts(store: LocalStore) -> None:
    def work(output: StepOutput) -> None:
        subprocess.run([sys.executable, "-c", "x = bytearray(700 << 20)"], check=True)

    receipt = commit_step(store, "fetch", {}, {}, work)
    assert run_facts(store, receipt)["peak_mib"] >= 700


def test_stores_of_the_old_layout_are_refused(any_store: Store) -> None:
    any_store.put_bytes(b"{}", f"steps/fetch/{'0' * 64}/receipt.json")
    with pytest.raises(InvalidInputError, match=r"was written by quantlib 0\.1"):
        commit_step(any_store, "fetch", {}, {}, write(b"abc"))


@pytest.mark.parametrize("content", [b'{"schema":"quantlib/store/3"}', b"", b"[]"])
def test_stores_of_another_layout_are_refused(store: LocalStore, content: bytes) -> None:
    store.put_bytes(content, "layout.json")
    with pytest.raises(InvalidInputError, match="has the layout"):
        commit_step(store, "fetch", {}, {}, write(b"abc"))


def test_lineage_is_walked_and_checked(store: LocalStore) -> None:
    fetch = commit_step(store, "fetch", {}, {}, write(b"a"))
    plan = commit_step(store, "plan", {}, {"model": fetch}, write(b"b"))
    merge = commit_step(store, "merge", {}, {"model": fetch, "plan": plan}, write(b"c"))
    assert [receipt.step for receipt in read_lineage(store, merge)] == ["fetch", "plan", "merge"]
    altered = fetch.model_copy(update={"facts": {"length": 2}})
    store.put_bytes(altered.to_json(), fetch.address)
    with pytest.raises(StoreError, match="not the receipt that was read"):
        read_lineage(store, merge)


def test_receipts_are_closed_and_round_trip(store: LocalStore) -> None:
    receipt = commit_step(store, "fetch", {"x": [1, "2"]}, {}, write(b"abc"))
    assert Receipt.from_json(receipt.to_json()) == receipt
    data: dict[str, Any] = json.loads(receipt.to_json())
    for broken in (data | {"extra": 1}, data | {"schema": "quantlib/receipt/1"}, {}):
        with pytest.raises(InvalidInputError, match="no valid receipt"):
            Receipt.from_json(json.dumps(broken))
