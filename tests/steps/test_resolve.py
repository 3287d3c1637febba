"""The first step of the watch pipeline, as Kubeflow runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from published_runs import publish_as
from recipes import QUICK

SILENT = {"recipe": json.dumps(QUICK), "source": "", "num_ranges": 0.0, "images": ["quantlib:1.0"]}


def resolve(folder: Path, **parameters: Any) -> tuple[subprocess.CompletedProcess[str], Any]:
    """Runs the step; the process and its output parameters."""
    outputs = {name: {"outputFile": str(folder / name)} for name in ("needed", "release", "job")}
    executor_input = {
        "inputs": {
            "parameterValues": SILENT | {"destination": str(folder / "published")} | parameters
        },
        "outputs": {
            "parameters": outputs,
            "artifacts": {"resolve_summary": {"artifacts": [{"uri": str(folder / "page.md")}]}},
            "outputFile": str(folder / "output.json"),
        },
    }
    command = [sys.executable, "-m", "quantlib.steps", "resolve"]
    done = subprocess.run(
        [*command, "--executor-input", json.dumps(executor_input)], capture_output=True, text=True
    )
    if done.returncode:
        return done, {}
    return done, json.loads((folder / "output.json").read_text())["parameterValues"]


def test_a_release_is_needed_until_it_is_published(tiny_llama: Path, tmp_path: Path) -> None:
    done, first = resolve(tmp_path, source=str(tiny_llama))
    assert done.returncode == 0, done.stderr
    assert first["needed"] == "yes"
    assert re.fullmatch(f"{tiny_llama}#sha256:[0-9a-f]{{64}}", first["release"])
    assert f"to be quantized, job {first['job']}" in done.stdout
    assert (tmp_path / "needed").read_text() == "yes"
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# resolve: to be quantized\n")
    job = first["job"].removeprefix("sha256:")[:12]
    assert f"- **job**: {job}…\n" in page

    address = publish_as(str(tmp_path / "published"), first["job"])
    done, second = resolve(tmp_path, source=str(tiny_llama))
    assert second == first | {"needed": "no"}
    assert f"up to date: {address}" in done.stdout
    assert "# resolve: published already" in (tmp_path / "page.md").read_text()

    _, other = resolve(tmp_path, source=str(tiny_llama), num_ranges=3.0)
    assert other["needed"] == "yes"
    assert other["job"] != first["job"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "model: the recipe names none"),
        ({"source": "/no/such/folder"}, "there is no such folder"),
        ({"source": "/no", "destination": ""}, "publish.destination: is missing"),
        ({"source": "/no", "images": "quantlib"}, "parameter images: is no list of strings"),
    ],
)
def test_what_cannot_be_resolved_is_said_in_a_line(
    tmp_path: Path, parameters: dict[str, Any], message: str
) -> None:
    done, _ = resolve(tmp_path, **parameters)
    assert done.returncode == 2
    assert done.stderr.startswith("resolve: ")
    assert message in done.stderr
