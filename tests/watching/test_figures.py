"""What Prometheus sees of a watcher."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from ports import free_ports
from prometheus_client.parser import text_string_to_metric_families as parsed

from quantlib.errors import InvalidInputError
from quantlib.publishing.receipts import render_receipts
from quantlib.report.manifest import RECEIPTS_NAME
from quantlib.store import LocalStore, StepOutput, commit_step, open_store
from quantlib.watching.figures import WatcherFigures
from quantlib.watching.looks import Look, Outcome

LABELS = ("recipe", "outcome", "step", "iteration")
Shown = dict[tuple[str, ...], float]


def shown(port: int) -> Shown:
    """Samples by name, recipe, and outcome or step and iteration."""
    text = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    return {
        (sample.name, *(sample.labels[name] for name in LABELS if name in sample.labels)): (
            sample.value
        )
        for family in parsed(text)
        for sample in family.samples
    }


def publish(store: LocalStore, address: Path) -> str:
    """A published folder as far as the watcher reads it, of steps that write little."""

    def work(count: int, **facts: Any) -> Any:
        def write(output: StepOutput) -> None:
            output.add_bytes("file", bytes(count))
            output.facts |= facts

        return write

    fetched = commit_step(store, "fetch", {}, {}, work(1000))
    parts = [
        commit_step(store, "quantize", {"range": span}, {"model": fetched}, work(count))
        for span, count in (("0:8", 2000), ("8:16", 3000))
    ]
    inputs = {"model": fetched, "first": parts[0], "second": parts[1]}
    judged = work(10, verdict="passed", kl_mean=0.25)
    validation = commit_step(store, "validate", {}, inputs, judged)
    published = open_store(str(address))
    published.put_bytes(render_receipts([fetched, *parts, validation]), RECEIPTS_NAME)
    return published.address


def test_looks_and_the_steps_of_what_was_published(store: LocalStore, tmp_path: Path) -> None:
    address = publish(store, tmp_path / "published")
    figures = WatcherFigures(store.address)
    (port,) = free_ports(1)
    figures.serve(port)
    figures.take(Look("dir/llama.yaml", Outcome.FAILED, "the source is gone"), 1.0)
    figures.take(Look("dir/llama.yaml", Outcome.DONE, address), 30.0)
    figures.take(Look("dir/llama.yaml", Outcome.UP_TO_DATE, address), 0.5)
    found = shown(port)
    assert found["quantlib_watch_looks_total", "llama", "failed"] == 1
    assert found["quantlib_watch_looks_total", "llama", "quantized"] == 1
    assert found["quantlib_watch_looks_total", "llama", "up_to_date"] == 1
    assert found["quantlib_watch_look_duration_seconds_sum", "llama"] == 31.5
    assert found["quantlib_step_written_bytes", "llama", "quantize", "0:8"] == 2000
    assert found["quantlib_step_written_bytes", "llama", "quantize", "8:16"] == 3000
    assert found["quantlib_verdict_passed", "llama", "validate", ""] == 1
    assert found["quantlib_verdict_kl_mean_nats", "llama", "validate", ""] == 0.25
    assert found["quantlib_step_peak_memory_bytes", "llama", "fetch", ""] > 2**20
    assert not any(len(label) > 60 for key in found for label in key)  # no digests


def test_a_checkpoint_without_receipts_costs_a_line_and_no_look(
    store: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = WatcherFigures(store.address)
    figures.take(Look("llama.yaml", Outcome.UP_TO_DATE, str(tmp_path / "gone")), 1.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: no figures of {tmp_path / 'gone'}: ")


def test_a_port_that_is_taken_is_refused(store: LocalStore) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInputError, match=f"--metrics-port {port}: .*in use; choose"):
            WatcherFigures(store.address).serve(port)
