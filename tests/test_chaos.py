"""A whole run, killed again and again at random, on a folder and on a server that fails.

``QUANTLIB_CHAOS_KILLS=100 pytest tests/test_chaos.py -s`` prints what docs/formats/store.md quotes.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import s3
from click.testing import CliRunner
from recipes import QUICK, settled_recipe

from quantlib.cli import cli
from quantlib.report.manifest import read_manifest, verify_published
from quantlib.store import Store, lease, open_store
from quantlib.store.inventory import take_inventory
from quantlib.store.transaction import run_facts

KILLS = int(os.environ.get("QUANTLIB_CHAOS_KILLS", "3"))
FAULTS = (s3.drop, s3.lose_answer, s3.truncate, s3.overloaded)
FAULTS_PER_REQUEST = 0.05
MARK = "QUANTLIB_CHAOS_MARK"
RECIPE = QUICK | {"outlier_suppression": {"method": "smooth_quant"}, "num_ranges": 2}


def whole_run(
    store: str, model: str, published: str, environment: dict[str, str], began: Path
) -> None:
    """All steps of the pipeline, one behind the other. Runs in a process of its own.

    Writes the name of each step into a file when it begins.
    """
    os.environ.update(environment)
    os.setsid()
    import torch

    import quantlib.steps.publish as publishing
    from quantlib.manager import QuantizationManager
    from quantlib.steps.publish import publish
    from quantlib.store import transaction

    def telling(store: Store, name: str, **options: Any) -> AbstractContextManager[None]:
        began.write_text(name.partition("/")[0])
        return lease(store, name, **options)

    transaction.lease = telling
    publishing.lease = telling
    torch.set_num_threads(1)
    recipe, opened = settled_recipe(RECIPE), open_store(store)
    result = QuantizationManager(recipe, model, opened, "cpu").quantize(validated=True)
    (validation,) = (step.receipt for step in _steps(opened) if step.step == "validate")
    publish(opened, recipe, published, result.checkpoint, validation)


def _steps(store: Store) -> list[Any]:
    return [step for step in take_inventory(store).steps if step.receipt is not None]


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Starts processes that have everything imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "transformers", "boto3", "quantlib.manager", "quantlib.steps.publish", __name__]
    )
    yield context


def family(mark: str) -> set[int]:
    """Processes that a run started, whoever their parent is now."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in content:
            found.add(int(path.parent.name))
    return found


def contents(store: Store) -> dict[str, str]:
    """The digest of every receipt and of what it names, by path.

    Without publish: what that step writes tells the time and the address.
    """
    receipts = [step.receipt for step in _steps(store) if step.step != "publish"]
    paths = {receipt.address for receipt in receipts}
    paths |= {record.blob for receipt in receipts for record in receipt.files.values()}
    return {path: hashlib.sha256(bytes(store.read(path))).hexdigest() for path in paths}


def checkpoint_of(published: Store) -> str:
    """The digest of the one published checkpoint, whose files are compared with it."""
    (path,) = (f.path for f in published.list() if f.path.endswith("/manifest.json"))
    folder = open_store(published.full_address(path.removesuffix("/manifest.json")))
    verify_published(folder)
    return read_manifest(folder).checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_run_survives_being_killed(
    kind: str,
    request: pytest.FixtureRequest,
    tiny_llama: Path,
    tmp_path: Path,
    processes: ForkServerContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(0)
    root = str(tmp_path)
    proxy: s3.Proxy | None = None
    if kind == "s3":
        root = str(request.getfixturevalue("s3_address"))
        proxy = request.getfixturevalue("proxy")
    monkeypatch.setenv(MARK, "")

    began = tmp_path / "began"

    def start(number: int, mark: str) -> BaseProcess:
        began.write_text("nothing")
        addresses = (f"{root}/{number}/store", str(tiny_llama), f"{root}/{number}/published")
        server = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        environment = server | {MARK: mark}
        process = processes.Process(target=whole_run, args=(*addresses, environment, began))
        process.start()
        return process

    undisturbed = start(0, "undisturbed")
    undisturbed.join(600)
    assert undisturbed.exitcode == 0
    steps = seconds_of_steps(open_store(f"{root}/0/store"))
    expected = contents(open_store(f"{root}/0/store"))
    published = checkpoint_of(open_store(f"{root}/0/published"))
    if proxy is not None:
        monkeypatch.setattr(proxy, "take", failing(proxy, draw))

    kills: Counter[str] = Counter()
    number, runs = 0, 0
    while kills.total() < KILLS:
        number += 1
        store = open_store(f"{root}/{number}/store")
        while True:
            runs += 1
            mark = f"{kind}-{number}-{runs}"
            process = start(number, mark)
            if kills.total() < KILLS:
                victim = draw.choice(sorted(steps))
                if wait_for(process, began, victim, draw.uniform(0, steps[victim])):
                    kills[began.read_text()] += 1
                    kill(process, draw)
            process.join(600)
            # 1: of eight attempts at a request, all failed.
            ends = (0, 1, -signal.SIGKILL, -signal.SIGTERM)
            assert process.exitcode in ends, process.exitcode
            gone_by = time.monotonic() + 30
            while family(mark) and time.monotonic() < gone_by:
                time.sleep(0.1)
            assert family(mark) == set(), "orphans"
            if process.exitcode == 0:
                break
            assert runs < 20 * KILLS + 20
        found = contents(store)
        assert {path: found.get(path) for path in expected} == expected, "lost or other"
        assert checkpoint_of(open_store(f"{root}/{number}/published")) == published
        verified = CliRunner().invoke(cli, ["store", "verify", store.address])
        assert verified.exit_code == 0, verified.output
        # A step that was killed just after its receipt leaves what it had kept, which gc removes.
        committed = {f"{step.receipt.step}/{step.receipt.key}" for step in _steps(store)}
        left = {"/".join(file.path.split("/")[1:3]) for file in store.list("partial")}
        assert left <= committed
    counts = ", ".join(f"{step} {count}" for step, count in sorted(kills.items()))
    print(f"\n{kind}: {kills.total()} kills in {runs} starts, {number} whole runs: {counts}")


def seconds_of_steps(store: Store) -> dict[str, float]:
    seconds: Counter[str] = Counter()
    for step in _steps(store):
        seconds[step.step] += run_facts(store, step.receipt)["seconds"]
    return dict(seconds)


def wait_for(process: BaseProcess, began: Path, step: str, seconds: float) -> bool:
    """Waits until a step has begun, and some seconds more; False where the run ends before."""
    while process.exitcode is None and began.read_text() != step:
        time.sleep(0.005)
    process.join(seconds)
    return process.exitcode is None


def kill(process: BaseProcess, draw: random.Random) -> None:
    assert process.pid is not None
    os.kill(process.pid, draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    process.join(60)


def failing(proxy: s3.Proxy, draw: random.Random) -> Callable[[s3.Request], s3.Fault | None]:
    """Every request fails by chance."""

    def take(request: s3.Request) -> s3.Fault | None:
        with proxy.lock:
            broken = draw.random() < FAULTS_PER_REQUEST
            return draw.choice(FAULTS) if broken else None

    return take
