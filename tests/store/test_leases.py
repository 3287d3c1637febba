"""Leases on a folder and on a real S3 server."""

import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from quantlib.store import LocalStore, Store, lease, open_store
from quantlib.store.leases import Holder, holders
from quantlib.store.receipt import InputReference

USE = InputReference(step="fetch", key="0" * 64, digest="sha256:" + "1" * 64)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return LocalStore(tmp_path / "store")
    return open_store(str(request.getfixturevalue("s3_address")))


def objects(store: Store) -> list[Holder]:
    return [
        Holder.model_validate_json(bytes(store.read(file.path))) for file in store.list("leases")
    ]


def stranger(store: Store, number: int = 0, beat: int = 0) -> None:
    """A lease of a process on another machine."""
    holder = Holder(
        id="other",
        place="another machine",
        host="elsewhere",
        pid=os.getpid(),
        started=1,
        since="2026-01-02T03:04:05Z",
        uses=(USE,),
        beat=beat,
    )
    store.put_bytes(holder.model_dump_json().encode(), f"leases/job/{number}.json")


def test_one_holds_and_the_others_wait(store: Store) -> None:
    inside, most, told = [0], [0], []

    def work() -> None:
        with lease(store, "job", tell=told.append):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert any(f"waiting for job: process {os.getpid()} on" in line for line in told)
    assert list(store.list("leases")) == []


def test_other_work_is_not_waited_for(store: Store) -> None:
    with lease(store, "a/1"), lease(store, "a/2"), lease(store, "a"):
        assert len(list(holders(store))) == 3


def test_it_is_released_when_the_work_fails(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), lease(store, "job"):
        raise ZeroDivisionError
    with lease(store, "job"):
        pass


def test_holders_and_what_they_read_can_be_seen(store: Store) -> None:
    with lease(store, "quantize/x", uses=[USE]):
        (holder,) = holders(store)
        assert (holder.pid, holder.uses) == (os.getpid(), (USE,))
        assert not holder.gone
        assert str(holder).startswith(f"process {os.getpid()} on ")
    assert list(holders(store)) == []


def test_a_killed_holder_is_no_holder(store: Store) -> None:
    script = (
        "import os, sys\nfrom quantlib.store import lease, open_store\n"
        "with lease(open_store(sys.argv[1]), 'job'):\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, store.address], check=False)
    assert done.returncode == -9
    assert list(holders(store)) == []
    with lease(store, "job"):
        pass


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("quantlib.store.leases.EXPIRY_SECONDS", 2.0)
    return open_store(s3_address)


def test_a_holder_elsewhere_is_waited_for_until_it_renews_no_more(bucket: Store) -> None:
    stranger(bucket)
    told: list[str] = []
    started = time.monotonic()
    with lease(bucket, "job", tell=told.append):
        assert time.monotonic() - started >= 2
        (own,) = objects(bucket)
        assert own.pid == os.getpid() and own.id != "other"
    who = f"process {os.getpid()} on elsewhere since 2026-01-02 03:04:05 UTC"
    assert told == [f"waiting for job: {who} does it"]


def test_a_holder_elsewhere_that_renews_keeps_it(bucket: Store) -> None:
    stranger(bucket)
    ended = threading.Event()

    def renew() -> None:
        for beat in range(1, 5):
            time.sleep(1)
            stranger(bucket, beat=beat)
        ended.set()
        bucket.delete("leases/job/0.json")

    thread = threading.Thread(target=renew)
    thread.start()
    with lease(bucket, "job", tell=lambda _: None):
        assert ended.is_set()
    thread.join()


def test_a_long_work_is_not_taken_over(bucket: Store) -> None:
    inside = threading.Event()

    def work() -> None:
        with lease(bucket, "job"):
            inside.set()
            time.sleep(5)
            inside.clear()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    with lease(bucket, "job", tell=lambda _: None):
        assert not inside.is_set()
    thread.join()


def test_a_holder_that_was_taken_over_leaves_the_other_alone(bucket: Store) -> None:
    with lease(bucket, "job"):
        stranger(bucket, number=1)
        time.sleep(1.2)  # two renewals
        assert {holder.id for holder in objects(bucket)} >= {"other"}
    assert [holder.id for holder in objects(bucket)] == ["other"]


def test_an_unreadable_lease_is_taken_over(store: Store) -> None:
    path = "leases/job.json" if isinstance(store, LocalStore) else "leases/job/0.json"
    store.put_bytes(b"\xff{", path)
    with lease(store, "job"):
        pass


def test_a_file_system_without_locks_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("quantlib.store.leases.fcntl.flock", refuse)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(lease(LocalStore(tmp_path), "job"))
