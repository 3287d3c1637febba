"""The watcher in its image: a look at a folder, with nothing but what a look needs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from published_runs import publish_as
from recipes import QUICK

from components._images import WATCH_IMAGE, named_images
from quantlib.checks.recipe import parse_recipe
from quantlib.watching.jobs import find_job

LOCKED = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--network", "none", "--tmpfs", "/tmp", "--tmpfs", "/scratch"),
)


def run(*command: str, mounted: Path) -> subprocess.CompletedProcess[str]:
    mount = f"type=bind,source={mounted},target={mounted},readonly"
    return subprocess.run(
        ["docker", "run", "--rm", *LOCKED, "--mount", mount, WATCH_IMAGE, *command],
        capture_output=True,
        text=True,
    )


@pytest.fixture
def watched(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder that everybody may read, with a model and a recipe for it."""
    folder = tmp_path / "watched"
    folder.mkdir()
    make_model(folder / "model")
    (folder / "recipe.json").write_text(json.dumps(QUICK | {"model": str(folder / "model")}))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def look(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(
        *("python", "-m", "quantlib", "watch", str(folder / "recipe.json"), "--once"),
        *("--runner", "kubeflow", "--host", "http://127.0.0.1:9", "--store", "s3://bucket/store"),
        *("--publish-to", str(folder / "published")),
        mounted=folder,
    )


def test_it_says_what_it_takes(tmp_path: Path) -> None:
    done = run("python", "-m", "quantlib", "watch", "--help", mounted=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Quantize every release" in done.stdout


def test_a_release_that_is_published_is_up_to_date(watched: Path) -> None:
    recipe = parse_recipe(json.loads((watched / "recipe.json").read_text()))
    published = str(watched / "published")
    job = find_job(recipe, published, named_images().of_quantization)
    address = publish_as(published, job.digest)
    done = look(watched)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"up to date: {address}\n")


def test_a_release_that_no_pod_can_reach_is_refused(watched: Path) -> None:
    done = look(watched)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "is a folder of this machine; give s3://bucket/prefix" in done.stdout


def test_a_source_that_is_gone_fails_in_a_line(watched: Path) -> None:
    (watched / "model" / "config.json").unlink()
    done = look(watched)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("\n") == 1
    assert "failed: " in done.stdout
