"""The step that fails a refused run, as Kubeflow runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantlib.errors import GateFailedError
from quantlib.steps.gate import gate


def test_gate_always_fails_with_the_reason() -> None:
    with pytest.raises(GateFailedError, match=r"kl_mean is 0\.31, above its limit"):
        gate("kl_mean is 0.31, above its limit")


def test_the_process_exits_with_3_and_prints_the_reason(tmp_path: Path) -> None:
    executor_input = {
        "inputs": {"parameterValues": {"reason": "kl_mean is too high"}},
        "outputs": {"outputFile": str(tmp_path / "output.json")},
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "quantlib.steps",
            "gate",
            "--executor-input",
            json.dumps(executor_input),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert done.stderr == "gate: the checkpoint was refused: kl_mean is too high\n"
