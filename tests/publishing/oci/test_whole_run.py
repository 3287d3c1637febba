"""The whole workflow into a registry, started by a watcher as a person starts one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from oci_registry import crane, oci_registry
from recipes import QUICK

pytestmark = pytest.mark.slow


def test_a_watched_model_is_published_as_an_image_once(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    model, recipe = make_model(tmp_path / "model"), tmp_path / "tiny.json"
    recipe.write_text(json.dumps(QUICK | {"model": str(model), "num_ranges": 1}))
    with oci_registry(tmp_path / "registry") as registry:
        repository = f"{registry}/team/tiny"
        command = [sys.executable, "-m", "quantlib", "watch", str(recipe), "--once"]
        command += ["--store", str(tmp_path / "store"), "--publish-to", f"oci://{repository}:w4"]

        def look() -> str:
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        first, second = look(), look()
        digest = crane("digest", f"{repository}:w4").strip()
        assert f"serve:     oci://{repository}@{digest}" in first
        assert f"tiny.json: quantized: oci://{repository}@{digest}" in first
        assert f"tiny.json: up to date: oci://{repository}@{digest}" in second
