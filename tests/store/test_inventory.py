"""What is in a store, what is damaged, and what may go: on a folder and on a real S3 server."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from quantlib.cli import cli
from quantlib.errors import InvalidInputError, StoreError
from quantlib.store import LocalStore, Receipt, StepOutput, Store, commit_step, open_store
from quantlib.store.inventory import find_garbage, remove_folder, take_inventory


@pytest.fixture(params=["folder", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    return str(request.getfixturevalue("s3_address"))


def commit(store: Store, step: str, inputs: dict[str, Receipt] | None = None, **parameters: Any):
    def work(output: StepOutput) -> None:
        output.local("data.bin").write_bytes(b"x" * 1000)
        output.add("data.bin")

    return commit_step(store, step, 1, parameters, inputs or {}, work)


def call(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(cli, ["store", *arguments])


def steps(garbage: Any) -> list[str]:
    return sorted(folder.step for folder, _ in garbage.folders)


def test_ls_shows_steps_with_their_state(address: str) -> None:
    store = open_store(address)
    model = commit(store, "fetch")
    store.put_bytes(b"half", "steps/quantize/abc/blocks.safetensors")
    result = call("ls", address)
    assert result.exit_code == 0, result.exception
    lines = {line.split()[0]: line for line in result.output.splitlines() if line}
    assert model.key[:12] in lines["fetch"]
    assert lines["fetch"].split()[-1] == "committed"
    assert lines["quantize"].split()[-1] == "unfinished"
    assert result.output.splitlines()[-1].startswith("2 steps, ")


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
def test_a_folder_that_is_not_there_is_no_empty_store(command: str, tmp_path: Path) -> None:
    result = call(command, str(tmp_path / "stroe"))
    assert isinstance(result.exception, InvalidInputError)
    assert "stroe: there is no such folder" in str(result.exception)


def test_verify_reads_every_byte(address: str) -> None:
    store = open_store(address)
    receipt = commit(store, "fetch")
    assert "1 steps are as their receipts say" in call("verify", address).output
    store.put_bytes(b"y" * 1000, receipt.path("data.bin"))
    result = call("verify", address)
    assert isinstance(result.exception, StoreError)
    assert f"{receipt.path('data.bin')}: its sha256 is not the receipt's" in result.output


def test_verify_finds_what_an_object_store_vouches_for_wrongly(s3_address: str) -> None:
    store: Any = open_store(s3_address)
    receipt = commit(store, "fetch")
    store.client.put_object(
        Bucket=store.bucket,
        Key=store.key(receipt.path("data.bin")),
        Body=b"y" * 1000,
        Metadata={"sha256": receipt.files["data.bin"].sha256},
    )
    assert "its sha256 is not the receipt's" in call("verify", s3_address).output


def test_what_published_and_recent_steps_rest_on_is_kept(address: str) -> None:
    store = open_store(address)
    model = commit(store, "fetch")
    commit(store, "plan", {"model": model})
    merged = commit(store, "merge", {"model": model})
    commit(store, "publish", {"checkpoint": merged})
    inventory = take_inventory(store)
    assert steps(find_garbage(store, inventory, timedelta(days=1))) == []
    time.sleep(1.1)
    garbage = find_garbage(store, take_inventory(store), timedelta(0))
    assert steps(garbage) == ["plan"]
    for folder, _ in garbage.folders:
        remove_folder(store, folder)
    assert sorted(f.step for f in take_inventory(store).folders) == ["fetch", "merge", "publish"]


def test_a_step_that_is_taken_over_is_as_good_as_new(store: LocalStore) -> None:
    receipt = commit(store, "fetch")
    age(store, 40)
    assert steps(find_garbage(store, take_inventory(store), timedelta(days=30))) == ["fetch"]
    assert commit(store, "fetch") == receipt
    assert steps(find_garbage(store, take_inventory(store), timedelta(days=30))) == []


def age(store: LocalStore, days: float) -> None:
    then = time.time() - days * 86400
    for path in store.root.rglob("*"):
        os.utime(path, (then, then))


def test_gc_removes_what_its_dry_run_shows(store: LocalStore) -> None:
    commit(store, "fetch")
    store.put_bytes(b"half", "steps/quantize/abc/blocks.safetensors")
    (store.scratch / "0123-left").mkdir()
    (store.scratch / "0123-left.lock").touch()
    fresh = call("gc", store.address, "--keep-days", "30")
    assert fresh.output == "freed 0 bytes\n"
    age(store, 40)
    before = sorted(store.root.rglob("*"))
    shown = call("gc", store.address, "--keep-days", "30", "--dry-run")
    assert "was never finished" in shown.output
    assert "40 days old, and nothing kept rests on it" in shown.output
    assert "scratch folder 0123-left" in shown.output
    assert "nothing was removed" in shown.output
    assert sorted(store.root.rglob("*")) == before
    result = call("gc", store.address, "--keep-days", "30")
    assert result.exit_code == 0, result.exception
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_unfinished_uploads_are_left_for_a_day(s3_address: str) -> None:
    store: Any = open_store(s3_address)
    store.client.create_multipart_upload(Bucket=store.bucket, Key=store.key("steps/x/y/z"))
    assert "unfinished upload" not in call("gc", s3_address, "--keep-days", "0").output
    assert len(list(store.leftovers())) == 1
