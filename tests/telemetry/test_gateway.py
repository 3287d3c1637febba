"""Figures at a Pushgateway: the real one where there is one, and a stand-in that writes down."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from listener import listening
from ports import free_ports
from prometheus_client.parser import text_string_to_metric_families as parsed

from quantlib.telemetry.gateway import push_figures

PROGRAM = "prometheus-pushgateway"  # Debian's package of this name
FIGURES = {"quantlib_step_duration_seconds": 41.5, "quantlib_step_read_bytes": 3e9}
LABELS = {"step": "quantize", "iteration": "0:8", "model": "org/name"}


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real Pushgateway."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [PROGRAM, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("QUANTLIB_PUSHGATEWAY", url)
    try:
        for _ in range(100):
            try:
                urlopen(f"{url}/-/ready")
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def shown(url: str) -> dict[tuple[str, ...], float]:
    """Figures at a gateway by name and labels."""
    text = urlopen(f"{url}/metrics").read().decode()
    return {
        (sample.name, *(sample.labels.get(name, "") for name in ("step", "iteration", "model"))): (
            sample.value
        )
        for family in parsed(text)
        for sample in family.samples
        if sample.name.startswith("quantlib_")
    }


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed")
def test_a_gateway_shows_the_last_figures_of_each_step(gateway: str) -> None:
    push_figures(LABELS, FIGURES)
    push_figures(LABELS, FIGURES | {"quantlib_step_duration_seconds": 42.0})
    push_figures({"step": "gate", "iteration": "", "model": ""}, FIGURES)
    assert shown(gateway) == {
        ("quantlib_step_duration_seconds", "quantize", "0:8", "org/name"): 42.0,
        ("quantlib_step_read_bytes", "quantize", "0:8", "org/name"): 3e9,
        ("quantlib_step_duration_seconds", "gate", "", ""): 41.5,
        ("quantlib_step_read_bytes", "gate", "", ""): 3e9,
    }


def test_what_is_pushed_is_what_prometheus_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as stand_in:
        monkeypatch.setenv("QUANTLIB_PUSHGATEWAY", stand_in.url)
        push_figures(LABELS, FIGURES)
    ((method, path, body),) = stand_in.requests
    assert method == "PUT"  # which replaces the group
    assert path.startswith("/metrics/job/quantlib/")
    samples = [sample for family in parsed(body.decode()) for sample in family.samples]
    assert {sample.name: sample.value for sample in samples} == FIGURES
    assert not any(sample.labels for sample in samples)


@pytest.mark.parametrize("status", [None, 400, 503])
def test_a_gateway_that_is_not_there_costs_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int | None
) -> None:
    with listening() as stand_in:
        stand_in.status = status or 200
        url = "http://127.0.0.1:9" if status is None else stand_in.url
        monkeypatch.setenv("QUANTLIB_PUSHGATEWAY", url)
        push_figures(LABELS, FIGURES)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: QUANTLIB_PUSHGATEWAY {url}: no figures were pushed: ")
