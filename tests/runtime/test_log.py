"""What lines of a process become, where JSON is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from quantlib.runtime.log import log_problems


def lines_of(code: str, form: str = "json", **environment: str) -> list[Any]:
    """What a program that starts its log and runs ``code`` leaves, standard output first."""
    head = "import sys, warnings\nfrom quantlib.runtime.log import about, start_log\nstart_log()\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code],
        env=os.environ | {"QUANTLIB_LOG": form} | environment,
        capture_output=True,
        text=True,
    )
    lines = (done.stdout + done.stderr).splitlines()
    return [json.loads(line) for line in lines] if form == "json" else lines


def test_a_line_is_an_object_with_what_it_is_about() -> None:
    code = "with about(step='quantize', iteration='0:8', key='ab'):\n    print('half', 'a line')"
    (record,) = lines_of(code, QUANTLIB_RUN="run-1")
    time = datetime.fromisoformat(record.pop("time"))
    assert abs((datetime.now(time.tzinfo) - time).total_seconds()) < 60
    assert record == {
        "level": "info",
        "message": "half a line",
        "run": "run-1",
        "step": "quantize",
        "iteration": "0:8",
        "key": "ab",
    }


def test_lines_stay_what_they_are_where_nothing_is_asked_for() -> None:
    code = "with about(step='plan'):\n    print('one line', file=sys.stderr)"
    assert lines_of(code, form="plain") == lines_of(code, form="") == ["one line"]


def test_parts_of_lines_wait_for_their_end_and_what_was_written_over_is_left_out() -> None:
    code = "print('1 %\\r2 %', end=''); print(' done\\n\\n\\nlast', end='')"
    assert [record["message"] for record in lines_of(code)] == ["2 % done", "last"]


@pytest.mark.parametrize(
    ("said", "level"),
    [
        ("print('warning: slow disk')", "warning"),
        ("print('[transformers] ERROR: no weights')", "error"),
        ("print('WARNING 11-28 21:00:00 [utils.py:1] odd')", "warning"),
        ("warnings.warn('odd')", "warning"),
        ("print('mean relative error: 0.1')", "info"),
        ("with about(level='error'): print('merge: no space left')", "error"),
    ],
)
def test_levels(said: str, level: str) -> None:
    assert lines_of(said)[0]["level"] == level


def test_a_traceback_is_one_object() -> None:
    (record,) = lines_of("with about(step='merge'):\n    1 / 0")
    assert (record["level"], record["step"]) == ("critical", "merge")
    assert record["message"].startswith("Traceback") and "ZeroDivisionError" in record["message"]


def test_fields_end_with_what_they_are_of_but_not_for_the_error_that_ends_it() -> None:
    code = """
with about(step='fetch'):
    try:
        with about(key='a'):
            raise OSError
    except OSError:
        print('failed')
with about(step='plan'):
    pass
print('next')
"""
    failed, then = lines_of(code)
    assert (failed["step"], failed["key"]) == ("fetch", "a")
    assert "step" not in then and "key" not in then


def test_another_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTLIB_LOG", "yaml")
    (problem,) = log_problems()
    assert str(problem) == "QUANTLIB_LOG: is 'yaml', neither plain nor json"


def test_a_step_says_which_run_and_work_it_is_of(tiny_llama: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    names = ("model", "texts", "fetch_summary")
    parameters = {
        "recipe": "minmax",
        "source": str(tiny_llama),
        "store": str(tmp_path / "store"),
    }
    executor_input = {
        "inputs": {"parameterValues": parameters},
        "outputs": {
            "parameters": {"checked_recipe": {"outputFile": f"{out}/recipe"}},
            "artifacts": {name: {"artifacts": [{"uri": f"file://{out}/{name}"}]} for name in names},
            "outputFile": f"{out}/output.json",
        },
    }
    command = [sys.executable, "-m", "quantlib.steps", "fetch", "--executor-input"]
    done = subprocess.run(
        [*command, json.dumps(executor_input)],
        env=os.environ | {"QUANTLIB_LOG": "json", "QUANTLIB_RUN": "run-1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stderr.splitlines()[-1])
    receipt = json.loads(Path(out, "model").read_text())
    about = (last["run"], last["step"], last["key"], last["message"])
    assert about == ("run-1", "fetch", receipt["key"], "fetch: done")
