"""What decides what is compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components import _images
from pipelines.compiling import CompileOptions, prepare
from pipelines.graph import QUANTIZE
from quantlib.errors import InvalidInputError

DIGEST = f"sha256:{'a' * 64}"


def test_floating_tags_are_refused_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_images, "QUANTLIB_IMAGE", "quantlib:latest")
    monkeypatch.setattr(_images, "VALIDATE_IMAGE", "quantlib-validate")
    with pytest.raises(InvalidInputError) as caught:
        prepare(QUANTIZE, CompileOptions())
    assert [problem.where for problem in caught.value.problems] == [
        "image quantlib:latest",
        "image quantlib-validate",
    ]
    images = prepare(QUANTIZE, CompileOptions(allow_floating=True)).images
    assert images.of_quantization == (
        "quantlib:latest",
        "quantlib-validate",
        _images.TASKS_IMAGE,
    )


def test_images_are_pinned_by_a_lock_file(tmp_path: Path) -> None:
    lock = tmp_path / "lock.json"
    names = ("quantlib", "validate", "tasks", "watch")
    pinned = {name: f"r.example/{name}@{DIGEST}" for name in names}
    lock.write_text(json.dumps(pinned))
    compilation = prepare(QUANTIZE, CompileOptions(images_lock=lock))
    assert vars(compilation.images) == pinned
    assert compilation.constants.images == tuple(pinned.values())[:3]


def test_images_can_be_set_when_compiling(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    environment = os.environ | {
        "QUANTLIB_IMAGE": f"mine/quantlib@sha256:{'1' * 64}",
        "QUANTLIB_VALIDATE_IMAGE": "mine/validate:2.0.0",
        "QUANTLIB_TASKS_IMAGE": "mine/tasks:2.0.0",
    }
    command = [sys.executable, "-m", "quantlib", "compile", "--output", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{path}\n")
    executors = next(yaml.safe_load_all(path.read_text()))["deploymentSpec"]["executors"]
    images = {executor["container"]["image"] for executor in executors.values()}
    assert images == {f"mine/quantlib@sha256:{'1' * 64}", "mine/validate:2.0.0", "mine/tasks:2.0.0"}
