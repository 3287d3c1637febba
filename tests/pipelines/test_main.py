"""The command line of the pipeline.

The annotations of components are read by kfp, which does not resolve them from strings: no
``from __future__ import annotations`` here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kfp import compiler, dsl

import pipelines.__main__ as command
from quantlib.errors import InvalidInputError, QuantlibError

Step = Callable[[str], dsl.ContainerSpec]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command.main, ["run", *arguments])


@pytest.fixture
def toy(step: Step, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Puts a pipeline of the same parameters and step names in the place of the real one.

    ``source`` says what its steps do: fail, be refused, or else pass.
    """
    monkeypatch.chdir(tmp_path)
    # The toy's sources are no models.
    monkeypatch.setattr(command, "input_problems", lambda *_, **_how: [])

    @dsl.container_component
    def fetch(given: dict, seen: dsl.OutputPath(dict)) -> dsl.ContainerSpec:
        return step(
            """
            print("fetching")
            if inputs["given"]["source"] == "fail":
                print("model: is missing")
                sys.exit(2)
            write("seen", inputs["given"])
            """
        )

    @dsl.container_component
    def validate(
        seen: dict, report: dsl.Output[dsl.HTML], verdict: dsl.OutputPath(str)
    ) -> dsl.ContainerSpec:
        return step(
            """
            artifact("outputs", "report").write_text("<html>")
            write("verdict", "failed" if inputs["seen"]["source"] == "refuse" else "passed")
            """
        )

    @dsl.container_component
    def publish(seen: dict, address: dsl.OutputPath(str)) -> dsl.ContainerSpec:
        return step("write('address', inputs['seen']['destination'] + '/abc')")

    @dsl.container_component
    def gate() -> dsl.ContainerSpec:
        return step("print('perplexity is too high'); sys.exit(3)")

    @dsl.container_component
    def pack(
        recipe: str,
        source: str,
        store: str,
        num_ranges: int,
        destination: str,
        device: str,
        gpu: str,
        parallel: int,
        all: dsl.OutputPath(dict),
    ) -> dsl.ContainerSpec:
        return step("write('all', inputs)")

    @dsl.pipeline(name="toy")
    def pipeline(
        recipe: str,
        source: str,
        store: str,
        num_ranges: int,
        destination: str,
        device: str,
        gpu: str,
        parallel: int,
    ) -> None:
        packed = pack(
            recipe=recipe,
            source=source,
            store=store,
            num_ranges=num_ranges,
            destination=destination,
            device=device,
            gpu=gpu,
            parallel=parallel,
        )
        seen = fetch(given=packed.outputs["all"]).outputs["seen"]
        verdict = validate(seen=seen).outputs["verdict"]
        with dsl.If(verdict == "passed"):
            publish(seen=seen)
        with dsl.Else():
            gate()

    def compile_toy(file: Path, options: Any, **_: Any) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(pipeline, str(file))

    monkeypatch.setattr(command, "compile_to", compile_toy)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: ./from-recipe\nquantization: {method: gptq}\n")
    return str(path)


def tasks_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())["tasks"]


def test_run_passes_its_options_on_and_reports(toy: None, recipe: str, tmp_path: Path) -> None:
    result = call(recipe, "--num-ranges", "3", "--publish-to", "out", "--run-dir", "here")
    assert result.exit_code == 0, result.output
    seen = tasks_of(tmp_path / "here")["fetch"]["outputs"]["parameters"]["seen"]
    assert json.loads(seen.pop("recipe"))["quantization"]["method"] == "gptq"
    assert seen == {
        "source": "",
        "store": str(tmp_path / ".quantlib" / "store"),
        "num_ranges": 3,
        "destination": str(tmp_path / "out"),
        "device": "auto",
        "gpu": "cpu",
        "parallel": min(4, len(os.sched_getaffinity(0))),
    }
    lines = dict(re.findall(r"^(\w+:) +(.+)$", result.output, re.MULTILINE))
    assert lines["verdict:"] == "passed"
    assert lines["published:"] == f"{tmp_path}/out/abc"
    assert Path(lines["report:"]).read_text() == "<html>"
    assert lines["run:"] == "here/run.json"


def test_refused_checkpoint(toy: None, recipe: str) -> None:
    result = call(recipe, "--model", "refuse")
    assert result.exit_code == 3
    assert "verdict:   failed" in result.output
    assert "step gate: exited with code 3" in result.output
    assert result.output.endswith("  perplexity is too high\n")
    assert "published:" not in result.output


def test_failed_step_shows_the_end_of_its_log(toy: None, recipe: str) -> None:
    result = call(recipe, "--model", "fail")
    assert result.exit_code == 2
    assert result.output.endswith("  fetching\n  model: is missing\n")


def test_a_run_folder_is_taken_again_but_no_other(toy: None, recipe: str, tmp_path: Path) -> None:
    assert call(recipe, "--model", "fail", "--run-dir", "here").exit_code == 2
    assert call(recipe, "--run-dir", "here").exit_code == 0
    assert tasks_of(tmp_path / "here")["fetch"]["state"] == "succeeded"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    refused = call(recipe, "--run-dir", "mine")
    assert isinstance(refused.exception, InvalidInputError)
    assert "mine: is not empty" in str(refused.exception)


def test_runner_docker_needs_an_engine_and_no_vllm_of_its_own(
    toy: None, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    def refuse(engine: str) -> None:
        raise AssertionError(f"{engine} is a matter of the image")

    monkeypatch.setattr(command, "choose_engine", refuse)
    refused = call(recipe, "--model", "pass", "--runner", "docker", "--run-dir", "here")
    assert isinstance(refused.exception, QuantlibError)
    assert "docker cannot be started" in str(refused.exception)
    assert not (tmp_path / "here" / "fetch").exists()


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
        [sys.executable, "-m", "pipelines", "run", "recipe.yaml"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(command.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("namespace", ["Bad", "a_b", "-a", "a b", "a" * 64])
def test_a_namespace_that_kubernetes_would_refuse(namespace: str, tmp_path: Path) -> None:
    output = tmp_path / "pipeline.yaml"
    arguments = ["compile", "--output", str(output), "--kubernetes", "--namespace", namespace]
    result = CliRunner().invoke(command.main, arguments)
    assert result.exit_code == 2
    assert f"{namespace!r} is no namespace" in result.output
    assert not output.exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "folder"
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "compile", "--output", str(place / "pipeline.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == f"error: {place}: Not a directory\n"


@pytest.mark.parametrize("command", ["", "run", "compile", "upload", "schedule"])
def test_help_needs_no_kfp_and_ends_in_examples(command: str) -> None:
    arguments = [command, "--help"] if command else ["--help"]
    program = (
        "import sys; sys.modules['kfp'] = sys.modules['torch'] = None;"
        f"from pipelines.__main__ import main; main({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if command:
        examples = done.stdout.split("Examples:\n")[1].splitlines()
        starts = [line for line in examples if line and not line.lstrip().startswith("--")]
        assert all("python -m pipelines" in line for line in starts)


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
    result = CliRunner().invoke(command.main, ["run", "gptq", "--model", "model", *options])
    assert isinstance(result.exception, InvalidInputError)
    assert message in str(result.exception)
    assert sorted(tmp_path.rglob("*")) == before
