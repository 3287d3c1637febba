"""``quantlib evaluate``: what it is given, refused before any work."""

import pytest
from command import Command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'ORIGINAL'."),
        (["./a"], "Missing argument 'CHECKPOINT'."),
        (["--model", "./b"], "Missing argument 'ORIGINAL'."),
        (["./a", "./b", "./c"], "./c: ORIGINAL and CHECKPOINT are given already"),
        (["./a", "./b", "--model", "./c"], "./b: ORIGINAL and CHECKPOINT are given already"),
        (["./a", "./b", "--baseline", "./c"], "error: c: there is no such folder"),
        (["./a", "--original", "./b", "--baseline", "./c"], "error: b: there is no such folder"),
        (["./a", "./b", *["--baseline", "./c"] * 7], "--baseline: 7 given; give 6 at most"),
    ],
)
def test_what_is_missing_or_too_much(quantlib: Command, arguments: list[str], message: str) -> None:
    done = quantlib("evaluate", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["evaluate", "quantize"])
def test_a_device_with_a_number_and_several_gpus_are_refused_in_one_line(
    quantlib: Command, tiny_llama: object, command: str, tmp_path: object
) -> None:
    models = {
        "evaluate": [tiny_llama, tiny_llama, "--engine", "transformers"],
        "quantize": ["--model", tiny_llama, "--output", f"{tmp_path}/out", "--validate"],
    }
    done = quantlib(command, *map(str, models[command]), "--device", "cuda:1", "--gpus", "2")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "cuda:1" in line]
    assert "device 'cuda:1': is one GPU, and models are to be spread over 2; use cuda" in line
