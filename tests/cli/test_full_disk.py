"""A disk that gets full at any moment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command

SMALL = ["--group-size", "32", "--num-samples", "16", "--sequence-length", "64", "--method", "gptq"]


@pytest.mark.parametrize("kibibytes", [8, 64, 200, 400, 480, 560, 640, 720, 800])
def test_a_full_disk_is_one_line_and_the_run_goes_on_after_it(
    quantlib: Command,
    tiny_llama: Path,
    tmp_path: Path,
    mount: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    kibibytes: int,
) -> None:
    monkeypatch.setattr("quantlib.checks.machine._room_problems", lambda *_: [])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("validation: {num_samples: 4, sequence_length: 64}\n")
    volume = mount(tmp_path / "vol", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs")
    output = volume / "out"
    command = ["quantize", "--model", tiny_llama, "--output", output, "--recipe", recipe]
    done = quantlib(*command, *SMALL)
    if done.returncode:
        assert done.returncode in (1, 2)
        said = [line for line in done.stderr.splitlines() if "error" in line or "Trace" in line]
        (line,) = said
        assert line == done.stderr.splitlines()[-1]
        assert line.startswith(f"error: {volume}")
        assert "No space left on device" in line
        assert not (output / "config.json").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(volume)], check=True)
        assert quantlib(*command, *SMALL).returncode == 0
    assert os.listdir(volume) == ["out"]
    assert (output / "config.json").exists()
    assert ".quantlib-work" not in os.listdir(output)
