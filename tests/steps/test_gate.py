"""The step that fails a refused run, as Kubeflow runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantlib.errors import GateFailedError
from quantlib.steps.gate import gate, together


@pytest.mark.parametrize(
    ("verdict", "code"),
    [("regression", 3), ("inconclusive", 4), ("broken", 5), ("", 3), ("Passed", 3)],
)
def test_what_did_not_pass_is_refused_with_the_reason(verdict: str, code: int) -> None:
    with pytest.raises(GateFailedError, match=r"kl_mean is 0\.31, above its limit") as refused:
        gate(verdict, "kl_mean is 0.31, above its limit")
    assert refused.value.exit_code == code


@pytest.mark.parametrize(
    ("text", "tasks", "verdict", "reason"),
    [
        ("passed", "passed", "passed", ""),
        ("passed", "regression", "regression", "tasks: less"),
        ("inconclusive", "passed", "inconclusive", "unclear"),
        ("inconclusive", "regression", "regression", "unclear; tasks: less"),
        ("broken", "inconclusive", "broken", "unclear; tasks: less"),
        ("", "passed", "", "unclear"),
    ],
)
def test_the_worst_verdict_holds(text: str, tasks: str, verdict: str, reason: str) -> None:
    judged = {"": (text, "unclear"), "tasks": (tasks, "less")}
    assert together(judged) == (verdict, reason)


@pytest.mark.parametrize(
    ("verdict", "code", "said"),
    [
        ("passed", 0, "gate: done\n"),
        ("regression", 3, "gate: the checkpoint was refused: kl_mean is too high\n"),
        (
            "inconclusive",
            4,
            "gate: it is not known whether the checkpoint is good enough: kl_mean is too high\n",
        ),
        ("broken", 5, "gate: the checkpoint is broken: kl_mean is too high\n"),
    ],
)
def test_the_process_exits_by_the_verdict(
    tmp_path: Path, verdict: str, code: int, said: str
) -> None:
    executor_input = {
        "inputs": {
            "parameterValues": {
                "verdict": verdict,
                "reason": "kl_mean is too high",
                "tasks_verdict": "passed",
                "tasks_reason": "the recipe asks for no tasks",
            }
        },
        "outputs": {"outputFile": str(tmp_path / "output.json")},
    }
    command = [sys.executable, "-m", "quantlib.steps", "gate", "--executor-input"]
    done = subprocess.run([*command, json.dumps(executor_input)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, said)
