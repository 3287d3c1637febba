"""The watcher: what is new, what is done, and what it says of sources that fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from processes import are_gone, marked
from published_runs import publish_as
from recipes import quick_recipe

from pipelines.commands.watch import watch as command
from quantlib.checks.recipe import load_recipe
from quantlib.errors import InvalidInputError, StepError
from quantlib.recipe import Recipe
from quantlib.runtime.keeper import kept
from quantlib.watching.jobs import find_job

IMAGES = ("quantlib:1.0.0",)


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "watched"))


def write(recipe: Recipe, path: Path) -> str:
    path.write_text(recipe.canonical_json())
    return str(path)


def watch(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["--once", *arguments])


def test_a_source_that_fails_is_told_and_the_others_go_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(_: object) -> str:
        raise StepError("fetch", "hf://org/limited@main: too many requests")

    monkeypatch.setattr("quantlib.sources.hub.resolve_commit", limited)
    good, published = quick_recipe(model), str(tmp_path / "published")
    job = find_job(good, published, ())
    address = publish_as(published, job.digest)
    result = watch(
        write(quick_recipe("hf://org/limited@main"), tmp_path / "limited.json"),
        write(quick_recipe(tmp_path / "gone"), tmp_path / "gone.json"),
        write(good, tmp_path / "good.json"),
        "--publish-to",
        published,
    )
    assert result.exit_code == 1
    limited_line, gone_line, good_line = result.output.splitlines()
    assert "limited.json: failed: step fetch: hf://org/limited@main: too many" in limited_line
    assert "gone.json: failed:" in gone_line and "there is no such folder" in gone_line
    assert good_line.endswith(f"good.json: up to date: {address}")


@pytest.mark.parametrize("address", ["x" * 5000, "~nobody-at-all/x"])
def test_a_source_that_no_system_call_takes_is_told_too(
    model: Path, tmp_path: Path, address: str
) -> None:
    good, published = quick_recipe(model), str(tmp_path / "published")
    done = publish_as(published, find_job(good, published, ()).digest)
    recipes = [
        write(quick_recipe(address), tmp_path / "bad.json"),
        write(good, tmp_path / "good.json"),
    ]
    result = watch(*recipes, "--publish-to", published)
    assert result.exit_code == 1
    bad_line, good_line = result.output.splitlines()
    assert "bad.json: failed:" in bad_line
    assert good_line.endswith(f"good.json: up to date: {done}")


def test_invalid_recipes_end_it_before_anything_is_started(tmp_path: Path) -> None:
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in paths:
        path.write_text('{"modell": 1}')
    result = watch(*map(str, paths))
    assert isinstance(result.exception, InvalidInputError)
    for path in paths:
        assert f"{path}: modell" in str(result.exception)


def test_recipes_are_read_at_every_look(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = tmp_path / "recipes", tmp_path / "recipes" / "llama-3.1.json"
    folder.mkdir()
    first, second, third = (quick_recipe(model, num_ranges=count) for count in (1, 2, 3))
    write(first, path)
    states = iter([lambda: write(second, path), lambda: path.write_text("{"), sys.exit])
    started: list[tuple[str, str, str]] = []

    def run(words: list[str], **_: object) -> SimpleNamespace:
        write(third, path)  # nor does an edit meanwhile change this run
        given = Path(words[words.index("--recipe") + 1])
        started.append((given.name, load_recipe(given).digest(), words[words.index("--job") + 1]))
        return SimpleNamespace(wait=lambda _=None: 0, poll=lambda: 0, kill=lambda: None)

    monkeypatch.setattr("quantlib.watching.looks.subprocess.Popen", run)
    monkeypatch.setattr("pipelines.commands.watch.time.sleep", lambda _: next(states)())
    published = str(tmp_path / "published")
    result = CliRunner().invoke(command, [str(folder), "--publish-to", published])
    jobs = [find_job(recipe, published, ()).digest for recipe in (first, second)]
    assert started == [
        (path.name, recipe.digest(), job) for recipe, job in zip((first, second), jobs, strict=True)
    ]
    assert f"{path}: failed: {path}: cannot be parsed" in result.output


@pytest.fixture
def slow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of a run, a process that sleeps, and notes its arguments in a file."""
    noted = tmp_path / "arguments"
    source = (
        f"import sys, time; open({str(noted)!r}, 'w').write(' '.join(sys.argv)); time.sleep(99)"
    )

    def instead(command: list[str], grace: float) -> list[str]:
        return kept([sys.executable, "-c", source, *command[2:]], grace)

    monkeypatch.setattr("quantlib.watching.looks.kept", instead)
    return noted


def test_a_run_that_hangs_is_ended_and_the_others_have_their_turn(
    model: Path, tmp_path: Path, slow_run: Path
) -> None:
    hanging, done = quick_recipe(model, num_ranges=4), quick_recipe(model)
    published = str(tmp_path / "published")
    address = publish_as(published, find_job(done, published, ()).digest)
    recipes = [write(hanging, tmp_path / "hangs.json"), write(done, tmp_path / "done.json")]
    options = ["--cluster", "local", "--gpu", "h100-80g", "--device", "cpu", "--timeout", "3"]
    result = watch(*recipes, "--publish-to", published, *options)
    hangs_line, done_line = result.output.splitlines()
    assert hangs_line.endswith("hangs.json: failed: the run took more than 3 s and was ended")
    assert done_line.endswith(f"done.json: up to date: {address}")
    assert slow_run.read_text().endswith(" --cluster local --device cpu --gpu h100-80g")
    assert are_gone(marked(published))


def test_the_watcher_runs_without_what_its_image_lacks(model: Path, tmp_path: Path) -> None:
    recipe = quick_recipe(model)
    path = write(recipe, tmp_path / "recipe.json")
    address = publish_as(str(tmp_path), find_job(recipe, str(tmp_path), ()).digest)
    program = (
        "import sys; missing = ('torch', 'transformers', 'datasets', 'gguf');"
        "sys.modules.update(dict.fromkeys(missing));"
        f"sys.argv = ['quantlib', 'watch', {path!r}, '--once', '--publish-to', {str(tmp_path)!r}];"
        "import pipelines.kubeflow.pipeline;"  # what a run compiles
        "from quantlib.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"up to date: {address}\n")


def test_a_destination_is_needed(model: Path, tmp_path: Path) -> None:
    result = watch(write(quick_recipe(model), tmp_path / "recipe.json"))
    assert result.exit_code == 1
    assert "publish.destination: is missing" in result.output


@pytest.mark.parametrize("port", ["0", "65536", "metrics", "9090"])
def test_a_port_for_prometheus_that_makes_no_sense_is_refused(tmp_path: Path, port: str) -> None:
    result = watch("recipe.json", "--metrics-port", port)  # 9090 does, but not for a single look
    assert result.exit_code == 2
    assert "--metrics-port" in result.output


def test_a_look_is_an_object_in_the_log_where_json_is_asked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTLIB_LOG", "json")
    result = watch(write(quick_recipe(tmp_path / "gone"), tmp_path / "gone.json"), "--publish-to=.")
    record = json.loads(result.output)
    assert (record["level"], record["recipe"], record["outcome"]) == ("error", "gone", "failed")
    assert "there is no such folder" in record["message"]
    monkeypatch.setenv("QUANTLIB_LOG", "yaml")
    assert "QUANTLIB_LOG: is 'yaml'" in str(watch(str(tmp_path / "gone.json")).exception)
