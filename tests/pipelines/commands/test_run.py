"""``quantlib run``: what it passes on, what it says, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from listener import listening

from pipelines.commands import run as command
from pipelines.graph import QUANTIZE, Constants, Graph
from pipelines.local.calls import Artifact, Values
from pipelines.local.run import RESULT_NAME, RunResult
from pipelines.local.scheduler import Execution
from pipelines.local.state import State, StepRun
from quantlib.errors import InvalidInputError, QuantlibError

OUTPUTS = {
    "validate": Values({"verdict": "passed"}),
    "publish": Values({"address": "here/abc"}),
}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command.run_command, arguments)


class Runs:
    """In the place of runs: what each was given; ``failing`` is the step that fails."""

    def __init__(self) -> None:
        self.settings: Mapping[str, Any] = {}
        self.constants: Constants | None = None
        self.failing = ""

    def __call__(
        self,
        graph: Graph,
        settings: Mapping[str, Any],
        constants: Constants,
        execution: Execution,
        console: Any,
    ) -> RunResult:
        self.settings, self.constants = settings, constants
        execution.folder.mkdir(parents=True, exist_ok=True)
        (execution.folder / RESULT_NAME).touch()
        runs = []
        for step in graph.steps:
            folder = execution.folder / step.name
            folder.mkdir(exist_ok=True)
            run = StepRun(step.name, None, step.name, folder, State.SUCCEEDED, attempts=1)
            page = Artifact(folder / "report", "system.HTML")
            run.outputs = Values(OUTPUTS.get(step.name, Values()).parameters, {"report": (page,)})
            runs.append(run)
            if step.name == self.failing:
                run.state, run.exit_code, run.error = State.FAILED, 3, f"step {step.name}: failed"
                (folder / "log.txt").write_text("looking\nperplexity is too high\n")
                return RunResult(graph.name, State.FAILED, 1.0, tuple(runs), run)
        return RunResult(graph.name, State.SUCCEEDED, 1.0, tuple(runs))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "input_problems", lambda *_, **_how: [])  # there is no model
    instead = Runs()
    monkeypatch.setattr(command, "run_graph", instead)
    return instead


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: ./from-recipe\nquantization: {method: gptq}\n")
    return str(path)


def test_options_are_passed_on_and_the_end_is_told(runs: Runs, recipe: str, tmp_path: Path) -> None:
    options = ["--num-ranges", "3", "--publish-to", "out", "--run-dir", "here", "--parallel", "3"]
    result = call("--recipe", recipe, *options)
    assert result.exit_code == 0, result.output
    settings = dict(runs.settings)
    assert set(settings) == {setting.name for setting in QUANTIZE.settings}
    assert json.loads(settings.pop("recipe"))["quantization"]["method"] == "gptq"
    assert settings == {
        "model": "",
        "scheme": "as in the recipe",
        "recipe_changes": {},
        "store": str(tmp_path / ".quantlib" / "store"),
        "num_ranges": 3,
        "publish_to": str(tmp_path / "out"),
        "device": "auto",
        "gpu": "cpu",
    }
    assert runs.constants is not None
    assert (runs.constants.parallel, runs.constants.scratch) == (3, "")
    lines = dict(re.findall(r"^(\w+:) +(.+)$", result.output, re.MULTILINE))
    assert lines == {
        "run:": "here/run.json",
        "verdict:": "passed",
        "report:": "here/validate/report",
        "published:": "here/abc",
    }


def test_json(runs: Runs, recipe: str) -> None:
    result = call("--recipe", recipe, "--run-dir", "here", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert (found["schema"], found["state"]) == ("quantlib/run-result/1", "succeeded")
    assert (found["verdict"], found["published"]) == ("passed", "here/abc")
    assert (found["run"], found["failure"]) == ("here", None)

    runs.failing = "quantize"
    result = call("--recipe", recipe, "--run-dir", "here", "--json", "--quiet")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert (found["state"], found["verdict"]) == ("failed", None)
    assert found["failure"] == {"step": "quantize", "error": "step quantize: failed"}
    assert "perplexity is too high" in result.stderr


def test_a_step_that_failed_shows_the_end_of_its_log(runs: Runs, recipe: str) -> None:
    runs.failing = "gate"
    result = call("--recipe", recipe)
    assert result.exit_code == 3
    assert "step gate: failed" in result.output
    assert result.output.endswith("  looking\n  perplexity is too high\n")
    assert "published:" not in result.output


def test_a_run_folder_is_taken_again_but_no_other(runs: Runs, recipe: str, tmp_path: Path) -> None:
    for _ in range(2):
        assert call("--recipe", recipe, "--run-dir", "here").exit_code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    refused = call("--recipe", recipe, "--run-dir", "mine")
    assert isinstance(refused.exception, InvalidInputError)
    assert "mine: is not empty" in str(refused.exception)


def test_runner_docker_needs_an_engine_and_no_vllm_of_its_own(
    runs: Runs, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    def refuse(engine: str) -> None:
        raise AssertionError(f"{engine} is a matter of the image")

    monkeypatch.setattr(command, "choose_engine", refuse)
    refused = call("--recipe", recipe, "--runner", "docker", "--run-dir", "here")
    assert isinstance(refused.exception, QuantlibError)
    assert "docker cannot be started" in str(refused.exception)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantization: {metod: gptq}\nnum_ranges: 0\n", "recipe.yaml: quantization.metod"),
        ("quantization: {method: gptq}\n", "names no model; give one with --model"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "quantlib", "run", "--recipe", "recipe.yaml"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(command.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--store", "model/store"], "store: lies in the model"),
        (["--publish-to", "model"], "model: is the model"),
        (["--publish-to", "."], "is the current folder"),
        (["--store", "mine"], "mine: is not empty, and no store"),
    ],
)
def test_what_is_the_users_is_never_written(
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_llama, "model")
    (tmp_path / "mine" / "tmp").mkdir(parents=True)
    (tmp_path / "mine" / "thesis.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    result = call("--model", "model", *options)
    assert isinstance(result.exception, InvalidInputError)
    assert message in str(result.exception)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_webhook_is_told_once_how_a_run_ended(
    runs: Runs, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() as hook:
        monkeypatch.setenv("QUANTLIB_NOTIFY_URL", hook.url)
        monkeypatch.setenv("QUANTLIB_NOTIFY_PASSED", "yes")
        call("--recipe", recipe, "--run-dir", "good")
        runs.failing = "gate"
        call("--recipe", recipe, "--run-dir", "bad")
    passed, refused = hook.posted
    assert (passed["run"], passed["outcome"], passed["reason"]) == ("good", "passed", "here/abc")
    assert (refused["run"], refused["step"], refused["outcome"]) == ("bad", "gate", "refused")
    assert (refused["model"], refused["reason"]) == ("./from-recipe", "perplexity is too high")


def test_settings_of_who_is_told_are_refused_before_anything(
    runs: Runs, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTLIB_NOTIFY_URL", "hooks.example")
    monkeypatch.setenv("QUANTLIB_PUSHGATEWAY", "gateway")
    error = call("--recipe", recipe).exception
    assert isinstance(error, InvalidInputError)
    assert len(error.problems) == 2
    assert runs.settings == {}


def test_what_serves_a_checkpoint_is_said(runs, recipe, monkeypatch) -> None:
    address = "oci://registry.example.org/model@sha256:" + "1" * 64
    monkeypatch.setitem(OUTPUTS, "publish", Values({"address": address}))
    arguments = ("--recipe", recipe, "--model", "model")
    assert f"\nserve:     {address}\n" in call(*arguments).output
    assert json.loads(call(*arguments, "--json").stdout)["storage_uri"] == address
    monkeypatch.setitem(OUTPUTS, "publish", Values({"address": "s3://bucket/model/1"}))
    assert "\nserve:     s3://bucket/model/1/\n" in call(*arguments).output
    monkeypatch.setitem(OUTPUTS, "publish", Values({"address": "here/abc"}))
    assert "serve:" not in call(*arguments).output
