"""The images, and one run of the whole pipeline in them that is watched from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components._images import QUANTLIB_IMAGE, TASKS_IMAGE, VALIDATE_IMAGE, WATCH_IMAGE
from pipelines.local.containers import RUN_LABEL

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = ROOT / "build" / "containers" / "model"


def docker(*arguments: str, check: bool = True) -> str:
    """The output of a docker command."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=check)
    return done.stdout.strip()


def containers_of(run: Path) -> list[str]:
    """The containers of a run, those that have ended included."""
    return docker("ps", "-aq", "--filter", f"label={RUN_LABEL}={run}").split()


def _missing() -> str:
    try:
        for image in (QUANTLIB_IMAGE, TASKS_IMAGE, VALIDATE_IMAGE, WATCH_IMAGE):
            if subprocess.run(
                ["docker", "image", "inspect", image], capture_output=True
            ).returncode:
                return f"no docker engine, or none that has {image}"
    except OSError:
        return "docker is not installed"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests of this folder where there are no images."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = _missing() if here else ""
    for item in here:
        item.add_marker(pytest.mark.containers)
        item.add_marker(pytest.mark.slow)
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"{reason}; make test-containers"))


@dataclass(frozen=True)
class Watched:
    """A run that has ended.

    Attributes:
        folder: Holds its run folder, its store and what it published.
        exit_code: Of the command.
        output: Of the command.
        containers: What ``docker inspect`` said of every container while it ran, by its step.
    """

    folder: Path
    exit_code: int
    output: str
    containers: dict[str, list[dict[str, Any]]]


def pipeline_command(folder: Path, recipe: Path) -> list[str]:
    """Runs SmolLM2 through the pipeline in containers."""
    (model,) = SMOLLM2.glob("*.gguf")
    return [
        *(sys.executable, "-m", "quantlib", "run", "--recipe", str(recipe), "--model", str(model)),
        *("--store", str(folder / "store"), "--publish-to", str(folder / "published")),
        *("--run-dir", str(folder / "run"), "--device", "cpu", "--runner", "docker"),
    ]


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """SmolLM2 through the whole pipeline."""
    folder = tmp_path_factory.mktemp("pipeline")
    found: dict[str, dict[str, Any]] = {}
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            pipeline_command(folder, ROOT / "scripts" / "demo.yaml"),
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
        while process.poll() is None:
            for container in containers_of(folder / "run"):
                if container not in found:
                    # It may be gone by now.
                    text = docker("inspect", container, check=False)
                    found |= {container: state for state in json.loads(text or "[]")}
            time.sleep(0.05)
        output.seek(0)
        text = output.read()
    by_step: dict[str, list[dict[str, Any]]] = {}
    for container in found.values():
        by_step.setdefault(container["Args"][2], []).append(container)
    return Watched(folder, process.returncode, text, by_step)
