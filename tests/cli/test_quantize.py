"""The command line on a tiny model: what it writes, and what interrupts it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, Command, files_below


def test_a_group_size_that_fits_is_chosen_and_said(
    quantlib: Command, tiny_llama: Path, recipe: Path, tmp_path: Path
) -> None:
    """The default 128 does not divide the 64 columns."""
    command = ["quantize", "--model", tiny_llama, "--recipe", recipe, *SMALL[2:]]
    done = quantlib(*command, "--output", tmp_path / "auto")
    assert done.returncode == 0, done.stderr
    said = (
        "group size 64: the largest of 128, 64, 32 that divides every linear's input; 128 does "
        "not divide model.layers.0.self_attn.q_proj (64)."
    )
    assert done.stderr.count(said) == 1
    report = json.loads((tmp_path / "auto" / "quantization_report.json").read_text())
    assert report["method"]["group_size"] == 64
    assert report["recipe"]["quantization"]["weights"]["group_size"] == 64
    assert said in [line for step in report["steps"] for line in step["remarks"]]
    given = quantlib(*command, "--output", tmp_path / "given", "--group-size", "64")
    assert given.returncode == 0, given.stderr
    assert "group size" not in given.stderr
    for path in (tmp_path / "auto").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "given" / path.name).read_bytes()
    written = json.loads((tmp_path / "given" / "quantization_report.json").read_text())
    keys = [[step["key"] for step in each["provenance"]["receipts"]] for each in (report, written)]
    assert keys[0] == keys[1]


def test_one_command_writes_a_checkpoint(
    quantlib: Command, tiny_llama: Path, recipe: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = ["quantize", "--model", tiny_llama, "--output", output, "--recipe", recipe]
    done = quantlib(*command, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "calibrated on the text that ships" in done.stdout
    assert files_below(output) >= {
        "config.json",
        "model-00001-of-00003.safetensors",
        "model.safetensors.index.json",
        "quantization_report.html",
        "quantization_report.json",
        "tokenizer.json",
        "vllm_config.json",
    }
    report = json.loads((output / "quantization_report.json").read_text())
    assert report["verdict"]["outcome"] == "not_validated"
    assert len(report["linears"]) == 28
    (planned,) = [step for step in report["steps"] if step["step"] == "plan"]
    assert planned["remarks"][0].startswith("Not tried with dummy weights: ")
    assert "Not tried with dummy weights: " in (output / "quantization_report.html").read_text()
    # Nothing else stays behind: neither the store nor a half-written folder.
    assert {path.name for path in tmp_path.iterdir()} == {"out", "recipe.yaml"}

    again = quantlib(*command, *SMALL)
    assert again.returncode == 2
    assert "is not empty; choose another, or give --overwrite" in again.stderr
    replaced = quantlib(*command, *SMALL, "--overwrite", "--method", "minmax")
    assert replaced.returncode == 0
    report = json.loads((output / "quantization_report.json").read_text())
    assert report["recipe"]["quantization"]["method"] == "minmax"


def test_layer_wise(quantlib: Command, tiny_llama: Path, recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = quantlib(
        "quantize", "--model", tiny_llama, "--output", output, "--recipe", recipe,
        *SMALL, "--layer-wise", "--layers", "0,2", "--format", "compressed-tensors",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((output / "quantization_report.json").read_text())
    assert {record["block"] for record in report["linears"]} == {0, 2}
    ignored = json.loads((output / "config.json").read_text())["quantization_config"]["ignore"]
    assert "model.layers.1.mlp.up_proj" in ignored


@pytest.fixture(scope="module")
def undisturbed(
    make_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Path]:
    """The arguments of a command that takes a while, and what it writes undisturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    model = make_model(root / "model", num_hidden_layers=12)
    (root / "recipe.yaml").write_text("validation: {num_samples: 4, sequence_length: 64}\n")
    arguments = ["quantize", "--model", str(model), "--recipe", str(root / "recipe.yaml")]
    arguments += [*SMALL, "--num-samples", "128", "--num-ranges", "4"]
    done = subprocess.run(_processed(arguments, root / "whole"), check=False)
    assert done.returncode == 0
    return arguments, root / "whole"


def _processed(arguments: list[str], output: Path) -> list[str]:
    return [sys.executable, "-m", "quantlib", *arguments, "--output", str(output)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    number: signal.Signals, undisturbed: tuple[list[str], Path], quantlib: Command, tmp_path: Path
) -> None:
    (arguments, whole), output = undisturbed, tmp_path / "out"

    # A test run in the background may have been told to ignore Ctrl-C, which children inherit.
    process = subprocess.Popen(
        _processed(arguments, output),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    store = output / ".quantlib-work" / "store"
    deadline = time.monotonic() + 240
    while not list(store.glob("steps/quantize/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    code = process.wait(timeout=60)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert os.listdir(output) == [".quantlib-work"]
    if number is not signal.SIGKILL:
        assert process.stderr is not None
        said = process.stderr.read().splitlines()[-1]
        assert said.startswith(f"interrupted: finished and kept in {store}: ")
        assert "fetch" in said and "quantize" in said
    receipts = {path: path.stat().st_mtime_ns for path in store.glob("steps/*/*.json")}
    assert not list(store.glob("steps/merge/*.json"))

    again = quantlib(*arguments, "--output", output)
    assert again.returncode == 0
    assert again.stderr.count("quantize ") < 4 <= len(receipts)
    assert {path.name for path in output.iterdir()} == {path.name for path in whole.iterdir()}
    for path in whole.glob("*.safetensors"):
        assert (output / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_validate_judges_and_still_writes(
    quantlib: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    validation = {
        "engine": "transformers",
        "num_samples": 4,
        "sequence_length": 64,
        "prompts": ["The engine"],
        "max_new_tokens": 4,
        "answer_tokens": 4,
        "thresholds": {"max_kl_mean": 1e-9},
    }
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"validation": validation}))
    output = tmp_path / "out"
    done = quantlib(
        "quantize", "--model", tiny_llama, "--output", output, "--recipe", recipe,
        *SMALL, "--validate",
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("error: refused by the gate: regression: ")
    verdict, figures = done.stdout.splitlines()[:2]
    assert verdict.startswith("regression: mean KL divergence is ")
    assert figures.startswith("perplexity ")
    assert "serve:" not in done.stdout
    report = json.loads((output / "quantization_report.json").read_text())
    assert report["verdict"]["outcome"] == "regression"
    assert report["evaluation"]["quantized"]["tokens_per_second"] > 0
