"""``quantlib convert``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from command import Command

from quantlib.store import LocalStore


def test_a_checkpoint_in_another_format(
    quantlib: Command,
    tiny_llama: Path,
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
    tmp_path: Path,
) -> None:
    recipe = small_recipe(quantization={"method": "minmax", "format": "gptq"})
    run = run_steps(LocalStore(tmp_path / "store"), recipe, tiny_llama)
    source, output = tmp_path / "made", tmp_path / "out"
    run.export(source)
    words = ("convert", "--model", source, "--output", output, "--format")
    done = quantlib(*words, "awq")
    assert (done.returncode, done.stdout.split(":")[0]) == (0, str(output))
    assert "28 linears" in done.stdout
    again = quantlib(*words, "awq")
    assert again.returncode == 2
    assert "is there and is no empty folder; choose another" in again.stderr
    unknown = quantlib("convert", "--model", source, "--output", tmp_path / "b", "--format", "gguf")
    assert unknown.returncode == 2
    assert "unknown checkpoint format" in unknown.stderr


def test_what_is_not_quantized_is_refused(
    quantlib: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    done = quantlib("convert", "--model", tiny_llama, "--output", output, "--format", "awq")
    assert done.returncode == 2
    assert "is not quantized; quantlib quantize does that" in done.stderr
    assert not output.exists()
