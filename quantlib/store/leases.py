"""Leases: one process at a time does a piece of work; the others wait and are told who has it.

A lease saves work, it does not guard what is written: blobs never change, and a receipt is created
once. So a lease that is lost, or a file system without locks, costs time only.

In a folder a lease is a lock on a file, which the kernel releases with its process. In object
storage it is an object with a number, ``leases/<name>/<n>.json``, created only if it is not there,
that its holder renews; whoever sees no renewal for a while by its own clock, or that the
holder was a process of this machine which is gone, creates the next number. The highest holds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantlib.errors import StoreError
from quantlib.store.base import Store
from quantlib.store.local import LocalStore
from quantlib.store.receipt import InputReference

FOLDER = "leases"
EXPIRY_SECONDS = 60.0
"""A lease in object storage that was not renewed for so long is taken over."""

BEATS_PER_EXPIRY = 4
POLLS_PER_EXPIRY = 12
_POLL_SECONDS = 0.5
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class Holder(BaseModel):
    """Who has a lease, and what for.

    Attributes:
        id: Another one for each lease that was ever taken.
        place: The machine, as long as it runs, and the process's namespace on it.
        host: The machine's name, for people.
        pid: The process.
        started: When the process started, in the kernel's ticks.
        since: When it took the lease.
        uses: What it reads: gc leaves that alone.
        beat: How often the lease was renewed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    place: str
    host: str
    pid: int
    started: int
    since: datetime
    uses: tuple[InputReference, ...] = ()
    beat: Annotated[int, Field(ge=0)] = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since:%Y-%m-%d %H:%M:%S} UTC"

    @property
    def gone(self) -> bool:
        """Whether it was a process of this machine that has ended."""
        return self.place == _place() and _started(self.pid) != self.started


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def lease(
    store: Store,
    name: str,
    uses: Sequence[InputReference] = (),
    tell: Callable[[str], None] = _tell,
) -> Iterator[None]:
    """Holds a lease while the context lasts; waits until it is free.

    Args:
        store: Where whoever does the same work looks for it.
        name: Names the work: a relative path.
        uses: Receipts that the work rests on.
        tell: Gets a line that says who has it, if it has to be waited for.

    Raises:
        StoreError: The store cannot be read or written.
    """
    holder = Holder(
        id=uuid.uuid4().hex,
        place=_place(),
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        since=datetime.now(UTC).replace(microsecond=0),
        uses=tuple(uses),
    )
    waited: set[str] = set()

    def wait(other: Holder | None) -> None:
        if other is not None and other.id not in waited:
            waited.add(other.id)
            tell(f"waiting for {name}: {other} does it")
        time.sleep(poll)

    poll = _POLL_SECONDS if isinstance(store, LocalStore) else EXPIRY_SECONDS / POLLS_PER_EXPIRY
    if isinstance(store, LocalStore):
        held = _in_folder(store, name, holder, wait)
    else:
        held = _in_object_storage(store, name, holder, wait)
    with held:
        yield


def holders(store: Store) -> Iterator[Holder]:
    """Who holds the leases of a store now.

    Raises:
        StoreError: It cannot be read.
    """
    for file in store.list(FOLDER):
        with suppress(StoreError):  # released meanwhile
            holder = _parsed(bytes(store.read(file.path)))
            if holder is None or holder.gone:
                continue
            age = datetime.now(UTC) - file.modified
            if isinstance(store, LocalStore):
                if _locked(store.local_path(file.path)):
                    yield holder
            # By two clocks, which may differ: rather too long than too short.
            elif age.total_seconds() < 10 * EXPIRY_SECONDS:
                yield holder


@contextmanager
def _in_folder(
    store: LocalStore, name: str, holder: Holder, wait: Callable[[Holder | None], None]
) -> Iterator[None]:
    path = store.local_path(f"{FOLDER}/{name}.json")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # the folder went with the last lease in it
        except OSError as error:
            raise StoreError(str(path), error.strerror or str(error)) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait(_parsed(os.pread(descriptor, 1 << 20, 0)))
                continue
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise StoreError(str(path), error.strerror or str(error)) from None
            if not _is_at(descriptor, path):
                continue  # the one that held it before has removed it
            try:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, holder.model_dump_json().encode(), 0)
                yield
            finally:
                store.delete(f"{FOLDER}/{name}.json")
            return
        finally:
            os.close(descriptor)


@contextmanager
def _in_object_storage(
    store: Store, name: str, holder: Holder, wait: Callable[[Holder | None], None]
) -> Iterator[None]:
    path = _take(store, f"{FOLDER}/{name}", holder, wait)
    done = threading.Event()
    beats = threading.Thread(target=_renew, args=(store, path, holder, done), daemon=True)
    beats.start()
    try:
        yield
    finally:
        done.set()
        beats.join()
        with suppress(StoreError):  # then it expires
            if _read(store, path) == holder.id:
                store.delete(path)


def _take(store: Store, folder: str, holder: Holder, wait: Callable[[Holder | None], None]) -> str:
    """Creates the object with the next number; its path."""
    seen: bytes | None = None
    changed = time.monotonic()
    while True:
        numbers = _numbers(store, folder)
        free = not numbers
        other = None
        if numbers:
            try:
                content = bytes(store.read(f"{folder}/{numbers[-1]}.json"))
            except StoreError:
                continue  # released meanwhile
            if content != seen:
                seen, changed = content, time.monotonic()
            other = _parsed(content)
            expired = time.monotonic() - changed > EXPIRY_SECONDS
            free = other is None or other.gone or expired
        if free:
            path = f"{folder}/{numbers[-1] + 1 if numbers else 0}.json"
            if store.put_new(holder.model_dump_json().encode(), path):
                for number in numbers:
                    store.delete(f"{folder}/{number}.json")
                return path
        else:
            wait(other)


def _renew(store: Store, path: str, holder: Holder, done: threading.Event) -> None:
    folder, number = path.rpartition("/")[0], int(path.rpartition("/")[2].removesuffix(".json"))
    while not done.wait(EXPIRY_SECONDS / BEATS_PER_EXPIRY):
        holder = holder.model_copy(update={"beat": holder.beat + 1})
        with suppress(StoreError):  # the next one may get through
            if any(other > number for other in _numbers(store, folder)):
                return  # it was taken over
            store.put_bytes(holder.model_dump_json().encode(), path)


def _numbers(store: Store, folder: str) -> list[int]:
    paths = (file.path.removesuffix(".json").rpartition("/") for file in store.list(folder))
    return sorted(int(name) for where, _, name in paths if where == folder and name.isdecimal())


def _read(store: Store, path: str) -> str | None:
    holder = _parsed(bytes(store.read(path)))
    return None if holder is None else holder.id


def _parsed(content: bytes) -> Holder | None:
    try:
        return Holder.model_validate_json(content)
    except ValidationError:
        return None  # in the making, or of another version


def _locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


def _started(pid: int) -> int:
    """When a process started, in ticks since the machine did; 0 for one that is not there."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = status.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])
