"""What others are told when a step ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from listener import listening
from prometheus_client.parser import text_string_to_metric_families as parsed

from quantlib.steps import ending
from quantlib.steps.ending import tell_ending

NO_TASKS = {"tasks_verdict": "passed", "tasks_reason": "the recipe asks for no tasks"}


def end_gate(
    folder: Path, environment: Mapping[str, str], verdict: str = "regression"
) -> subprocess.CompletedProcess[str]:
    parameters = {
        "verdict": verdict,
        "reason": "kl_mean is 0.3",
        **NO_TASKS,
        "model": "hf://org/name@main",
    }
    executor_input = {
        "inputs": {"parameterValues": parameters},
        "outputs": {"outputFile": str(folder / "output.json")},
    }
    return subprocess.run(
        [sys.executable, "-m", "quantlib.steps", "gate", "--executor-input"]  # noqa: RUF005
        + [json.dumps(executor_input)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_a_step_pushes_its_figures_and_tells_of_its_failure(tmp_path: Path) -> None:
    with listening() as hook, listening() as gateway:
        told = {
            "QUANTLIB_NOTIFY_URL": f"{hook.url}/secret",
            "QUANTLIB_PUSHGATEWAY": gateway.url,
            "QUANTLIB_RUN": "run-1",
        }
        assert end_gate(tmp_path, told).returncode == 3
        assert end_gate(tmp_path, told, "passed").returncode == 0
    (notice,) = hook.posted
    assert (notice["run"], notice["model"], notice["step"], notice["exit_code"]) == (
        "run-1",
        "hf://org/name@main",
        "gate",
        3,
    )
    assert notice["reason"] == "the checkpoint was refused: kl_mean is 0.3"
    codes = []
    for _, path, body in gateway.requests:
        assert path == "/metrics/job/quantlib/step/gate"
        figures = {family.name: family.samples[0].value for family in parsed(body.decode())}
        codes.append(figures["quantlib_step_exit_code"])
        assert 0 < figures["quantlib_step_duration_seconds"] < 60
        assert figures["quantlib_step_peak_memory_bytes"] > 2**20
    assert codes == [3, 0]


def test_that_nobody_can_be_told_changes_nothing(tmp_path: Path) -> None:
    dead = "http://127.0.0.1:9/secret"
    told = {"QUANTLIB_NOTIFY_URL": dead, "QUANTLIB_PUSHGATEWAY": "http://127.0.0.1:9"}
    done = end_gate(tmp_path, told)
    assert done.returncode == 3
    failure, *warnings = done.stderr.splitlines()
    assert failure == "gate: the checkpoint was refused: kl_mean is 0.3"
    assert len(warnings) == 2 and all(line.startswith("warning: ") for line in warnings)
    assert "secret" not in done.stderr


def test_settings_that_make_no_sense_are_refused_together(tmp_path: Path) -> None:
    done = end_gate(tmp_path, {"QUANTLIB_NOTIFY_URL": "x", "QUANTLIB_LOG": "x"}, "passed")
    assert done.returncode == 2
    assert "QUANTLIB_NOTIFY_URL: is no address" in done.stderr
    assert "QUANTLIB_LOG: is 'x'" in done.stderr


def test_kubernetes_gets_the_reason_of_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "termination-log"
    monkeypatch.setattr(ending, "TERMINATION_LOG", log)
    tell_ending("merge", None, 1, "no space", 1.0)
    assert not log.exists()  # outside of Kubernetes
    log.touch()
    tell_ending("merge", None, 0, "done", 1.0)
    assert log.read_text() == ""
    tell_ending("merge", None, 1, "é" * 4096, 1.0)
    assert log.read_text() == "é" * 2048  # as much as Kubernetes takes
