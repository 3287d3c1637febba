"""What is in a store, what is damaged, and what may go: on a folder and on a real S3 server."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from quantlib.cli import cli
from quantlib.errors import InvalidInputError, StoreError
from quantlib.store import LocalStore, Receipt, StepOutput, Store, commit_step, lease, open_store
from quantlib.store.garbage import Keep, collect, find_garbage
from quantlib.store.inventory import take_inventory

NOW = Keep(steps=timedelta(0))
AT_ONCE = Keep(steps=timedelta(0), grace=timedelta(0))


@pytest.fixture(params=["folder", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    return str(request.getfixturevalue("s3_address"))


def commit(store: Store, step: str, inputs: dict[str, Receipt] | None = None, **parameters: Any):
    def work(output: StepOutput) -> None:
        output.local("data.bin").write_bytes(step.encode() * 1000)
        output.add("data.bin")

    return commit_step(store, step, parameters, inputs or {}, work)


def call(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli, ["store", *arguments])


def steps_of(store: Store) -> list[str]:
    return sorted(step.step for step in take_inventory(store).steps)


def blobs_of(store: Store) -> set[str]:
    return {file.path for file in store.list("blobs")}


def publish(store: Store, receipt: Receipt, digest: str, model: str = "Tiny") -> str:
    """As if a checkpoint of one file had been published within the store."""
    path = f"published/{model}/{digest}/manifest.json"
    record = receipt.files["data.bin"].model_dump(exclude_none=True)
    store.put_bytes(json.dumps({"files": {"data.bin": record}}).encode(), path)
    return path


def age(store: LocalStore, days: float) -> None:
    then = time.time() - days * 86400
    for path in store.root.rglob("*"):
        os.utime(path, (then, then))


def test_ls_shows_steps_with_their_state(address: str) -> None:
    store = open_store(address)
    model = commit(store, "fetch")
    store.put_bytes(b"half", f"partial/quantize/{'ab' * 32}/blocks.safetensors")
    store.put_bytes(b"torn", f"steps/plan/{'cd' * 32}.json")
    with lease(store, "smooth/x"):
        result = call("ls", address)
    assert result.exit_code == 0, result.exception
    lines = {line.split()[0]: line for line in result.output.splitlines() if line}
    assert model.key[:12] in lines["fetch"]
    assert lines["fetch"].split()[-1] == "committed"
    assert lines["plan"].split()[-1] == "damaged"
    assert lines["quantize"].split()[-1] == "unfinished"
    assert f"process {os.getpid()}" in lines["in"]
    assert result.output.splitlines()[-1].startswith("2 steps, ")


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_a_folder_that_is_not_there_is_no_empty_store(command: str, tmp_path: Path) -> None:
    result = call(command, str(tmp_path / "stroe"))
    assert isinstance(result.exception, InvalidInputError)
    assert "stroe: there is no such folder" in str(result.exception)


def test_verify_reads_every_byte(address: str) -> None:
    store = open_store(address)
    receipt = commit(store, "fetch")
    assert "1 steps are as their receipts say, and 1 files" in call("verify", address).output
    store.put_bytes(b"y" * 5000, receipt.path("data.bin"))
    result = call("verify", address)
    assert isinstance(result.exception, StoreError)
    assert f"{receipt.path('data.bin')}: its sha256 is another" in result.output


@pytest.mark.parametrize("damage", ["blob gone", "blob shorter", "receipt torn", "receipt moved"])
def test_verify_finds(address: str, damage: str) -> None:
    store = open_store(address)
    receipt = commit(store, "fetch")
    if damage == "blob gone":
        store.delete(receipt.path("data.bin"))
    elif damage == "blob shorter":
        store.put_bytes(b"", receipt.path("data.bin"))
    elif damage == "receipt torn":
        store.put_bytes(receipt.to_json()[:-9], receipt.address)
    else:
        store.put_bytes(receipt.to_json(), f"steps/fetch/{'0' * 64}.json")
    assert isinstance(call("verify", address).exception, StoreError)


def test_verify_finds_what_an_object_store_vouches_for_wrongly(s3_address: str) -> None:
    store: Any = open_store(s3_address)
    receipt = commit(store, "fetch")
    store.client.put_object(
        Bucket=store.bucket,
        Key=store.key(receipt.path("data.bin")),
        Body=b"y" * 5000,
        Metadata={"sha256": receipt.files["data.bin"].sha256},
    )
    assert "its sha256 is another" in call("verify", s3_address).output


def test_what_recent_steps_rest_on_is_kept(address: str) -> None:
    store = open_store(address)
    model = commit(store, "fetch")
    commit(store, "merge", {"model": model})
    assert find_garbage(store, Keep(steps=timedelta(days=1))).files == {}


def test_garbage_is_named_first_and_removed_later(address: str) -> None:
    store = open_store(address)
    receipt = commit(store, "fetch")
    time.sleep(1.1)
    collect(store, find_garbage(store, NOW))
    assert steps_of(store) == ["fetch"], "the first pass removed something"
    later = Keep(steps=timedelta(0), grace=timedelta(seconds=1))
    time.sleep(1.1)
    garbage = find_garbage(store, later)
    assert {receipt.address, receipt.path("data.bin")} <= garbage.removable
    collect(store, garbage)
    assert steps_of(store) == []
    assert blobs_of(store) == set()
    assert list(store.list("gc")) == []


def test_what_a_run_takes_over_between_the_passes_stays(store: LocalStore) -> None:
    receipt = commit(store, "fetch")
    age(store, 40)
    keep = Keep(steps=timedelta(days=30), grace=timedelta(seconds=0.1))
    collect(store, find_garbage(store, keep))
    assert commit(store, "fetch") == receipt
    time.sleep(0.2)
    garbage = find_garbage(store, keep)
    assert garbage.files == {}
    collect(store, garbage)
    assert store.exists(receipt.path("data.bin"))


def test_a_blob_that_a_step_in_flight_writes_again_stays(store: LocalStore) -> None:
    old = commit(store, "fetch")
    age(store, 40)
    keep = Keep(steps=timedelta(days=30), grace=timedelta(seconds=0.1))
    collect(store, find_garbage(store, keep))
    time.sleep(0.2)

    def work(output: StepOutput) -> None:
        output.add_bytes("data.bin", b"fetch" * 1000)
        collect(store, find_garbage(store, keep))

    receipt = commit_step(store, "other", {}, {}, work)
    assert receipt.path("data.bin") == old.path("data.bin")
    assert store.exists(receipt.path("data.bin"))
    assert not store.exists(old.address)


def test_what_a_step_in_flight_reads_stays(address: str) -> None:
    store = open_store(address)
    model = commit(store, "fetch")
    commit(store, "plan")
    time.sleep(1.1)
    with lease(store, "quantize/x", uses=[model.reference()]):
        garbage = find_garbage(store, AT_ONCE)
        assert not {model.address, model.path("data.bin")} & garbage.files.keys()
        collect(store, garbage)
    assert steps_of(store) == ["fetch"]
    time.sleep(1.1)
    assert model.address in find_garbage(store, AT_ONCE).files


def test_a_published_checkpoint_keeps_its_files_and_nothing_else(address: str) -> None:
    store = open_store(address)
    model = commit(store, "fetch")
    merged = commit(store, "merge", {"model": model})
    publish(store, merged, "0" * 64)
    time.sleep(1.1)
    collect(store, find_garbage(store, AT_ONCE))
    assert blobs_of(store) == {merged.path("data.bin")}
    assert steps_of(store) == []


def test_so_many_published_checkpoints_of_each_model_are_kept(address: str) -> None:
    store = open_store(address)
    for number, model in enumerate(("A", "A", "A", "B")):
        publish(store, commit(store, "merge", n=number), str(number) * 64, model)
        time.sleep(1.1)
    keep = Keep(steps=timedelta(days=1), published=2, grace=timedelta(0))
    collect(store, find_garbage(store, keep))
    left = sorted(file.path.split("/")[2][0] for file in store.list("published"))
    assert left == ["1", "2", "3"]


def test_a_damaged_manifest_stops_gc(store: LocalStore) -> None:
    commit(store, "fetch")
    store.put_bytes(b"[]", f"published/Tiny/{'0' * 64}/manifest.json")
    with pytest.raises(StoreError, match="is no valid manifest"):
        find_garbage(store, AT_ONCE)


def test_a_torn_receipt_does_not_stop_gc(store: LocalStore) -> None:
    commit(store, "plan")
    store.put_bytes(b"", f"steps/fetch/{'0' * 64}.json")
    age(store, 40)
    collect(store, find_garbage(store, AT_ONCE))
    assert steps_of(store) == []


def test_gc_removes_what_its_dry_run_shows(store: LocalStore) -> None:
    commit(store, "fetch")
    store.put_bytes(b"half", f"partial/quantize/{'ab' * 32}/blocks.safetensors")
    (store.scratch / "0123-left").mkdir()
    (store.scratch / "0123-left.lock").touch()
    fresh = call("gc", store.address)
    assert fresh.output.startswith("freed 0 bytes; 0 bytes may go")
    age(store, 40)
    before = sorted(store.root.rglob("*"))
    shown = call("gc", store.address, "--grace-hours", "0", "--dry-run")
    assert "was never finished" in shown.output
    assert "40 days old, and nothing kept rests on it" in shown.output
    assert "scratch folder 0123-left" in shown.output
    assert "nothing was removed" in shown.output
    assert sorted(store.root.rglob("*")) == before
    result = call("gc", store.address, "--grace-hours", "0")
    assert result.exit_code == 0, result.exception
    left = [path.name for path in store.root.rglob("*") if path.is_file()]
    assert left == ["layout.json"]


def test_unfinished_uploads_are_left_for_a_day(s3_address: str) -> None:
    store: Any = open_store(s3_address)
    store.client.create_multipart_upload(Bucket=store.bucket, Key=store.key("blobs/x"))
    assert "unfinished upload" not in call("gc", s3_address, "--keep-days", "0").output
    assert len(list(store.leftovers())) == 1
