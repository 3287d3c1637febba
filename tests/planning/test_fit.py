"""What does not fit is refused with the numbers, and with what would fit.

The models are exact in shape and sparse on disk: only headers are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from recipes import settled_recipe

from quantlib.checkpoint.source import FolderSource
from quantlib.cli import cli
from quantlib.errors import InvalidInputError, Problem
from quantlib.models import open_model
from quantlib.planning import (
    Limits,
    estimate_run,
    find_hardware,
    fit_problems,
    parse_quantity,
)

GIB = 1 << 30
LLAMA_405B = {
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
LLAMA_70B = LLAMA_405B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
GPTQ = {
    "quantization": {"method": "gptq", "weights": {"bits": 4, "group_size": 128}},
    "calibration": {"num_samples": 512, "sequence_length": 2048},
}


def shapes(config: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * hidden // config["num_attention_heads"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "lm_head.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for block in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{block}."
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            found[f"{prefix}{name}.weight"] = shape
    return found


def write_sparse(folder: Path, config: Mapping[str, int]) -> Path:
    """A bf16 Llama of zeros that takes no room: a file of headers and a hole for each block."""
    folder.mkdir()
    files: dict[str, dict[str, Any]] = {}
    for name, shape in shapes(config).items():
        block = name.split(".")[2] if ".layers." in name else "outer"
        header = files.setdefault(f"model-{block}.safetensors", {})
        start = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        entry = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, start + size]}
        header[name] = entry
    for file, header in files.items():
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            opened.truncate(8 + len(text) + max(e["data_offsets"][1] for e in header.values()))
    weight_map = {name: file for file, header in files.items() for name in header}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"} | dict(config))
    )
    return folder


@pytest.fixture(scope="module")
def llama_405b(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    folder = write_sparse(tmp_path_factory.mktemp("sparse") / "405b", LLAMA_405B)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_llama / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def llama_70b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sparse(tmp_path_factory.mktemp("sparse") / "70b", LLAMA_70B)


def problems(
    folder: Path, gpu: str, limits: Limits = Limits(), **changes: dict[str, Any]
) -> dict[str, Problem]:
    recipe = settled_recipe(GPTQ | changes)
    checkpoint, adapter = open_model(FolderSource(folder))
    estimate = estimate_run(
        recipe, checkpoint, adapter, find_hardware(gpu), 8, node_gpus=limits.node_gpus
    )
    found = fit_problems(recipe, checkpoint, adapter, estimate, limits)
    return {problem.where: problem for problem in found}


def test_405b_on_h100s(llama_405b: Path) -> None:
    assert sum(path.stat().st_size for path in llama_405b.iterdir()) > 811e9
    held = {"validation": {"reference": "engine"}}
    found = problems(llama_405b, "h100-80g", Limits(8, 400 * GIB), **held)
    quantize = found.pop("quantize on h100-80g")
    # Eight float32 matrices of 53248 squared are 84.5 GiB; the block, the tokens and so on besides.
    assert "and there are 80.0 GiB" in quantize.what
    needed = float(quantize.what.split()[1])
    assert 115 < needed < 400
    assert "84.5 GiB are for the Hessians of mlp.down_proj (53248 inputs)" in quantize.what
    validate = found.pop("validate on h100-80g")
    assert "needs 98.5 GiB on each of 8 GPUs, and there are 80.0 GiB" in validate.what
    assert "the original's weights are 756.0 GiB" in validate.what
    assert validate.remedy == "what would work: 8 of h200-141g in one node"
    scratch = found.pop("scratch.size")
    assert "and the profile gives 400.0 GiB" in scratch.what
    assert scratch.remedy.startswith("give 957Gi")
    assert not found


def test_an_original_that_no_node_holds_is_streamed(llama_405b: Path) -> None:
    """Then validate holds, on its GPUs and its disk, the quantized model alone."""
    streamed = problems(llama_405b, "h100-80g", Limits(8, 400 * GIB))
    assert [where.partition(" ")[0] for where in streamed] == ["quantize"]
    held = problems(llama_405b, "l40s-48g", Limits(4))["validate on l40s-48g"]
    assert "; those of the quantized model are" in held.what


def test_what_would_work_does(llama_405b: Path) -> None:
    """Every remedy for quantize that is named makes it fit; few tokens are none of them."""
    few = {"calibration": {"num_samples": 64, "sequence_length": 2048}}
    (quantize,) = [
        problem
        for where, problem in problems(llama_405b, "h100-80g", **few).items()
        if where.startswith("quantize")
    ]
    assert quantize.remedy == (
        "what would work: a GPU with 141.0 GiB (h200-141g); or leaving mlp.down_proj exact "
        "(quantization.ignore: [down_proj]); or a method without calibration (minmax)"
    )
    section = GPTQ["quantization"]
    changed = problems(llama_405b, "h100-80g", quantization=section | {"method": "minmax"})
    assert not any(where.startswith("quantize") for where in changed)
    exact = {"quantization": section | {"ignore": ["lm_head", "down_proj"]}}
    left = problems(llama_405b, "h100-80g", **few | exact)
    assert not any(where.startswith("quantize") for where in left)
    assert not any(w.startswith("quantize") for w in problems(llama_405b, "h200-141g", **few))


def test_fewer_tokens_are_named_where_they_help(llama_70b: Path) -> None:
    many = {"num_samples": 1024, "sequence_length": 2048}
    found = problems(llama_70b, "h100-80g", calibration=many)
    remedy = found["quantize on h100-80g"].remedy
    most = int(remedy.rpartition("calibration.num_samples: ")[2].partition(")")[0])
    assert f"calibrating on {most * 2048} tokens" in remedy
    assert "quantize on h100-80g" not in problems(
        llama_70b, "h100-80g", calibration=many | {"num_samples": most}
    )
    assert "quantize on h100-80g" in problems(
        llama_70b, "h100-80g", calibration=many | {"num_samples": most + 1}
    )


def test_a_nodes_gpus(llama_70b: Path) -> None:
    few = {"calibration": {"num_samples": 64, "sequence_length": 512}}
    assert problems(llama_70b, "h100-80g", **few) == {}
    assert problems(llama_70b, "h100-80g", Limits(1), **few) == {}  # streamed
    held = {"validation": {"reference": "engine"}}
    one = problems(llama_70b, "h100-80g", Limits(1), **few | held)
    assert one["validate on h100-80g"].remedy == (
        "what would work: 1 of b200-180g in one node; or nodes with 2 of h100-80g"
    )
    served = {"serving": {"tensor_parallel_size": 8}}
    found = problems(llama_70b, "h100-80g", Limits(4), **few | served)
    assert found["serving.tensor_parallel_size"].what == (
        "is 8, and validate judges the model on one node, which has 4 GPUs"
    )
    assert problems(llama_70b, "h100-80g", Limits(8), **few | served) == {}


def test_the_command_refuses(llama_405b: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(
        json.dumps(
            GPTQ
            | {
                "calibration": {"num_samples": 8, "sequence_length": 256},
                "validation": {"num_samples": 4, "sequence_length": 256},
            }
        )
    )
    arguments = ["plan", str(llama_405b), "--recipe", str(recipe), "--gpu", "h100-80g"]
    result = CliRunner(env={"COLUMNS": "120"}).invoke(cli, [*arguments, "--scratch", "400Gi"])
    assert isinstance(result.exception, InvalidInputError)
    assert "scratch disk of a step" in result.output  # the tables come all the same
    wheres = [problem.where for problem in result.exception.problems]
    assert wheres == ["quantize on h100-80g"]
    assert "the original is judged block by block" in result.output
    fits = [*arguments[:-1], "h200-141g"]
    assert CliRunner().invoke(cli, fits).exit_code == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [("400Gi", 400 << 30), ("1.5T", 1_500_000_000_000), ("1000", 1000), ("20M", 20_000_000)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_quantity(text) == count
