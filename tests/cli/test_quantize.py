"""The command line on a tiny model: what it writes, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import Command
from safetensors.torch import load_file, save_file

from quantlib.errors import InvalidInputError

SMALL = [
    "--group-size", "32", "--num-samples", "8", "--sequence-length", "64", "--num-ranges", "2",
]  # fmt: skip


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("validation: {num_samples: 4, sequence_length: 64}\n")
    return path


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


Change = Callable[[Path], None]


def spoil(name: str, value: float) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name].view(-1)[3] = value
        save_file(tensors, folder / "model.safetensors")

    return change


def configure(**entries: Any) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | entries))

    return change


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def corrupt(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:8] + b"#" + path.read_bytes()[9:])


def pickles_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def missing_shard(folder: Path) -> None:
    weight_map = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def nothing(folder: Path) -> None:
    pass


BAD: list[tuple[str, Change, list[str], str]] = [
    ("missing folder", shutil.rmtree, [], "there is no such"),
    ("empty folder", empty, [], "is empty"),
    (
        "no checkpoint",
        lambda folder: (folder / "config.json").unlink(),
        [],
        "config.json: is missing",
    ),
    ("truncated", truncate, [], "truncated: 100 bytes missing"),
    ("corrupt", corrupt, [], "model.safetensors: is not JSON"),
    (
        "missing shard",
        missing_shard,
        [],
        "names model-00002-of-00002.safetensors, which is missing",
    ),
    ("pickles", pickles_only, [], "pickled weights only (pytorch_model.bin)"),
    ("missing tensor", drop_tensor, [], "model.layers.3.mlp.up_proj.weight: the checkpoint has no"),
    (
        "model type",
        configure(model_type="novel", architectures=["NovelForCausalLM"]),
        [],
        "does not know 'novel', so that no text can be run through its blocks; quantize without "
        "text: --method minmax, --recipe fp8, or method hqq with options {importance: none}",
    ),
    (
        "quantized",
        configure(quantization_config={"quant_method": "hqq"}),
        [],
        "quantization_config: says quant_method 'hqq', which is not read; what is: awq, ",
    ),
    (
        "NaN",
        spoil("model.layers.1.mlp.up_proj.weight", torch.nan),
        [],
        "model.layers.1.mlp.up_proj.weight",
    ),
    ("Inf", spoil("model.norm.weight", torch.inf), [], "model.norm.weight"),
    ("group size", nothing, ["--group-size", "128"], "128 does not divide self_attn.q_proj (64"),
    ("bits", nothing, ["--bits", "5"], "gptq does not support 5; supported: 2, 4, 8"),
    ("format", nothing, ["--format", "gptq", "--asymmetric"], "symmetric weights only"),
    (
        "method",
        nothing,
        ["--method", "magic"],
        "unknown quantization method 'magic'; known: awq, gptq",
    ),
    (
        "scheme",
        nothing,
        ["--scheme", "nvfp-4"],
        "--scheme: 'nvfp-4' is no scheme; did you mean NVFP4? known: W2A16, W4A16",
    ),
    ("type", nothing, ["--weight-type", "floot"], "did you mean float? known: float, int"),
    ("activations", nothing, ["--activations", "int8-static"], "go with weights of 8 bits"),
    ("layer", nothing, ["--layers", "0,4"], "4 out of range; the model has blocks 0 to 3"),
    ("layers", nothing, ["--layers", "0,x"], "no list of block indices"),
    ("layer-wise", nothing, ["--layer-wise"], "add --layers"),
    ("sequence", nothing, ["--sequence-length", "300"], "300 is above the model's 256"),
    ("tokens", nothing, ["--num-samples", "999999"], "999999 samples of 64 tokens need"),
    ("dataset", nothing, ["--calibration-dataset", "./none.txt"], "there is no such file"),
    ("suppression", nothing, ["--outlier-suppression", "magic"], "known: smooth_quant"),
    ("device", nothing, ["--device", "tpu"], "unknown"),
    (
        "GPUs that cannot share",
        nothing,
        ["--validate", "--gpus", "3"],
        "gpus: 3 GPUs cannot share the model: 2 attention heads cannot be divided by 3; sizes that "
        "work: 1, 2",
    ),
    ("GPUs without validation", nothing, ["--gpus", "2"], "--gpus: is for validation only"),
    ("no GPU", nothing, ["--validate", "--gpus", "0"], "0 is not in the range x>=1"),
]


@pytest.mark.parametrize(("name", "change", "options", "message"), BAD, ids=[bad[0] for bad in BAD])
def test_bad_input_is_refused_and_nothing_is_written(
    name: str,
    change: Change,
    options: list[str],
    message: str,
    quantlib: Command,
    tiny_llama: Path,
    recipe: Path,
    tmp_path: Path,
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    change(model)
    before = files_below(tmp_path)
    done = quantlib(
        "quantize", "--model", model, "--output", tmp_path / "out", "--recipe", recipe,
        *SMALL, *options,
    )  # fmt: skip
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("quantisation: {}\n", "quantisation: unknown key"),
        ("validation: {thresholds: {max_kl_mean: -1}}\n", "validation.thresholds.max_kl_mean"),
        ("a: [\n", "cannot be parsed"),
    ],
)
def test_bad_recipes(
    quantlib: Command, tiny_llama: Path, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    for command in (
        ["validate-recipe", path],
        ["quantize", "--model", tiny_llama, "--output", tmp_path / "o", "--recipe", path],
    ):
        done = quantlib(*command)
        assert done.returncode == 2
        assert message in done.stderr
    assert files_below(tmp_path) == {"bad.yaml"}


def test_no_permission_and_no_space(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantlib.checks.recipe import parse_recipe
    from quantlib.checks.run import input_problems
    from quantlib.output import output_problems

    recipe = parse_recipe(
        {
            "quantization": {"weights": {"group_size": 32}},
            "calibration": {"num_samples": 8, "sequence_length": 64},
            "validation": {"num_samples": 4, "sequence_length": 64},
        }
    )

    def problems() -> str:
        found = output_problems(tmp_path / "a" / "out", overwrite=False)
        return "\n".join(
            map(str, found + input_problems(recipe, str(tiny_llama), str(tmp_path / "s")))
        )

    assert problems() == ""
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert "no permission to write in" in problems()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
        assert "GB free; make room" in problems()
    (tmp_path / "a").write_text("a file")
    assert "is no folder" in problems()


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
    assert done.stderr.splitlines()[-1].startswith("error: refused by the gate: perplexity rose")
    assert done.stdout.startswith("perplexity ")
    assert "serve:" not in done.stdout
    report = json.loads((output / "quantization_report.json").read_text())
    assert report["verdict"]["outcome"] == "failed"
    assert report["evaluation"]["quantized"]["tokens_per_second"] > 0


def test_what_vllm_refuses_leaves_nothing_behind(
    quantlib: Command,
    tiny_llama: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise InvalidInputError.one("vLLM 0.32.0", "refuses the model")

    monkeypatch.setattr("quantlib.steps.plan.dry_load", refuse)
    before = files_below(tmp_path)
    command = ["quantize", "--model", tiny_llama, "--output", tmp_path / "out"]
    done = quantlib(*command, "--recipe", recipe, *SMALL)
    assert done.returncode == 2
    assert "error: vLLM 0.32.0: refuses the model" in done.stderr
    assert files_below(tmp_path) == before


def test_all_that_is_wrong_with_a_plan_is_said_at_once(
    tiny_llama: Path, tmp_path: Path, quantlib: Command
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("quantization: {method: gptqq}\n")
    options = ["--recipe", str(recipe), "--gpu", "H100", "--scheme", "NVFP5"]
    done = quantlib("plan", tiny_llama, *options)
    assert done.returncode == 2
    for message in (
        "gpu 'H100': is unknown; known: h200-141g, h100-80g",
        "did you mean h100-80g?",
        "--scheme: 'NVFP5' is no scheme; did you mean NVFP4?",
        "unknown quantization method 'gptqq'; known: awq, gptq, hqq, minmax; did you mean gptq?",
    ):
        assert message in done.stderr
