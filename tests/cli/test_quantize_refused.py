"""What the command line refuses on a tiny model: in which words, and that nothing is left."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import SMALL, Command, files_below
from safetensors.torch import load_file, save_file

from quantlib.errors import InvalidInputError

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
        "gpu 'H100': is unknown; known: b200-180g, h200-141g",
        "did you mean h100-80g?",
        "--scheme: 'NVFP5' is no scheme; did you mean NVFP4?",
        "unknown quantization method 'gptqq'; known: awq, gptq, hqq, minmax; did you mean gptq?",
    ):
        assert message in done.stderr
