"""``quantlib compile``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.commands.compile import compile_command


@pytest.mark.parametrize("namespace", ["Bad", "a_b", "-a", "a b", "a" * 64])
def test_a_namespace_that_kubernetes_would_refuse(namespace: str, tmp_path: Path) -> None:
    output = tmp_path / "pipeline.yaml"
    arguments = ["--output", str(output), "--kubernetes", "--namespace", namespace]
    result = CliRunner().invoke(compile_command, arguments)
    assert result.exit_code == 2
    assert f"{namespace!r} is no namespace" in result.output
    assert not output.exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "folder"
    done = subprocess.run(
        [sys.executable, "-m", "quantlib", "compile", "--output", str(place / "pipeline.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == f"error: {place}: Not a directory\n"
