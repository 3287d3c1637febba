import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from quantlib.errors import InvalidInputError, StoreError
from quantlib.store import LocalStore, Receipt, StepOutput, commit_step, read_lineage, run_facts


def write(content: bytes, calls: list[int] | None = None):
    def work(output: StepOutput) -> None:
        if calls is not None:
            calls.append(1)
        output.local("a.bin").write_bytes(content)
        output.add("a.bin")
        output.facts["length"] = len(content)

    return work


def test_a_committed_step_is_not_run_again(store: LocalStore) -> None:
    calls: list[int] = []
    first = commit_step(store, "fetch", 1, {"x": 1}, {}, write(b"abc", calls))
    second = commit_step(store, "fetch", 1, {"x": 1}, {}, write(b"abc", calls))
    assert first == second
    assert len(calls) == 1
    assert store.read(first.path("a.bin")) == b"abc"
    assert first.files["a.bin"].bytes == 3
    assert run_facts(store, first)["seconds"] >= 0


def test_every_input_of_the_key_makes_other_work(store: LocalStore) -> None:
    base = commit_step(store, "fetch", 1, {"x": 1}, {}, write(b"abc"))
    others = [
        commit_step(store, "plan", 1, {"x": 1}, {}, write(b"abc")),
        commit_step(store, "fetch", 2, {"x": 1}, {}, write(b"abc")),
        commit_step(store, "fetch", 1, {"x": 2}, {}, write(b"abc")),
        commit_step(store, "fetch", 1, {"x": 1}, {"model": base}, write(b"abc")),
    ]
    assert len({receipt.key for receipt in [base, *others]}) == 5


def test_equal_work_has_an_equal_digest_wherever_the_store_is(tmp_path: Path) -> None:
    one = commit_step(LocalStore(tmp_path / "1"), "fetch", 1, {"x": 1}, {}, write(b"abc"))
    two = commit_step(LocalStore(tmp_path / "2"), "fetch", 1, {"x": 1}, {}, write(b"abc"))
    assert one.digest() == two.digest()


@pytest.mark.parametrize("damage", ["change", "truncate", "remove"])
def test_damaged_files_are_made_again(store: LocalStore, damage: str) -> None:
    calls: list[int] = []
    receipt = commit_step(store, "fetch", 1, {}, {}, write(b"abc", calls))
    path = store.local_path(receipt.path("a.bin"))
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(b"abd" if damage == "change" else b"ab")
    again = commit_step(store, "fetch", 1, {}, {}, write(b"abc", calls))
    assert len(calls) == 2
    assert again == receipt
    assert store.read(receipt.path("a.bin")) == b"abc"


def test_a_failing_step_leaves_no_receipt_and_no_scratch(store: LocalStore) -> None:
    def work(output: StepOutput) -> None:
        output.local("a.bin").write_bytes(b"half")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        commit_step(store, "fetch", 1, {}, {}, work)
    assert list(store.scratch.iterdir()) == []
    assert not list(store.root.rglob("receipt.json"))


def test_a_killed_step_is_started_afresh_and_its_scratch_removed(store: LocalStore) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from quantlib.store import LocalStore, commit_step
        def work(output):
            output.local("a.bin").write_bytes(b"half")
            print("writing", flush=True)
            time.sleep(60)
        commit_step(LocalStore(sys.argv[1]), "fetch", 1, {}, {}, work)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(store.root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert len([each for each in store.scratch.iterdir() if each.is_dir()]) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    receipt = commit_step(store, "fetch", 1, {}, {}, write(b"whole"))
    assert store.read(receipt.path("a.bin")) == b"whole"
    assert list(store.scratch.iterdir()) == []


def test_lineage_is_walked_and_checked(store: LocalStore) -> None:
    fetch = commit_step(store, "fetch", 1, {}, {}, write(b"a"))
    plan = commit_step(store, "plan", 1, {}, {"model": fetch}, write(b"b"))
    merge = commit_step(store, "merge", 1, {}, {"model": fetch, "plan": plan}, write(b"c"))
    assert [receipt.step for receipt in read_lineage(store, merge)] == ["fetch", "plan", "merge"]
    altered = fetch.model_copy(update={"facts": {"length": 2}})
    store.put_bytes(altered.to_json(), f"{fetch.folder}/receipt.json")
    with pytest.raises(StoreError, match="not the receipt that was read"):
        read_lineage(store, merge)


def test_receipts_are_closed_and_round_trip(store: LocalStore) -> None:
    receipt = commit_step(store, "fetch", 1, {"x": [1, "2"]}, {}, write(b"abc"))
    assert Receipt.from_json(receipt.to_json()) == receipt
    data = json.loads(receipt.to_json())
    for broken in (data | {"extra": 1}, data | {"schema": "quantlib/receipt/2"}, {}):
        with pytest.raises(InvalidInputError, match="no valid receipt"):
            Receipt.from_json(json.dumps(broken))
