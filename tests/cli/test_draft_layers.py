"""Layers that draft tokens, rounded with the model where a recipe says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from command import Command, Done
from drafting import add_draft_layer
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
SHARED = [f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")]
ROUNDED = {
    "qwen3_5": [f"mtp.layers.0.{name}" for name in ATTENTION + MLP],
    "glm4_moe": [f"model.layers.3.{name}" for name in ATTENTION + SHARED],
}
"""The linears that are in a block of the model too."""

SHORT = ["--num-samples", "4", "--sequence-length", "32", "--num-ranges", "2"]


@pytest.fixture
def quantize(quantlib: Command, tmp_path: Path) -> Callable[..., Done]:
    """Quantizes the model in the folder ``source``, with changes to the recipe."""

    def run(output: str, **changes: Any) -> Done:
        quantization = {
            "method": "gptq",
            "format": "compressed-tensors",
            "weights": {"group_size": GROUP},
            **changes,
        }
        recipe = tmp_path / f"{output}.json"
        recipe.write_text(json.dumps({"quantization": quantization}))
        where = ["--model", tmp_path / "source", "--output", tmp_path / output]
        return quantlib("quantize", *where, "--recipe", recipe, *SHORT)

    return run


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def rounded_to_nearest(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int32 words of eight codes each, and scales; the largest of a group is 7.5 steps."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    scales = (groups.abs().amax(-1) / 7.5).to(torch.bfloat16)
    codes = (groups / scales.float()[..., None]).round().clamp(-8, 7).flatten(1).long() + 8
    words = (codes.unflatten(1, (-1, 8)) << (4 * torch.arange(8))).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).int(), scales


@pytest.mark.parametrize("family", ROUNDED)
def test_linears_of_draft_layers_are_rounded_to_nearest_and_nothing_else_changes(
    family: str, quantize: Callable[..., Done], tmp_path: Path
) -> None:
    source = zoo.make(family, tmp_path / "source")
    add_draft_layer(source, family, strength=0.1)
    for output, rounded in (("exact", False), ("rounded", True)):
        done = quantize(output, draft_layers=rounded)
        assert done.returncode == 0, done.stderr
    original, exact, found = map(tensors_of, (source, tmp_path / "exact", tmp_path / "rounded"))
    for linear in ROUNDED[family]:
        weight = original[f"{linear}.weight"]
        assert exact.pop(f"{linear}.weight").equal(weight)
        words, scales = rounded_to_nearest(weight)
        assert found.pop(f"{linear}.weight_packed").equal(words)
        assert found.pop(f"{linear}.weight_scale").equal(scales)
        assert found.pop(f"{linear}.weight_shape").tolist() == list(weight.shape)
    assert found.keys() == exact.keys()
    assert all(tensor.equal(exact[name]) for name, tensor in found.items())

    configs = [
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("exact", "rounded")
    ]
    ignored = [set(config["quantization_config"].pop("ignore")) for config in configs]
    assert configs[0] == configs[1]
    named = ("mtp.", "model.layers.4.") if family == "qwen3_5" else ("model.layers.3.",)
    new = {name.removeprefix("re:^").replace("\\", "") for name in ignored[1] - ignored[0]}
    assert all(name.startswith(named) for name in new)
    if family == "qwen3_5":
        assert ignored[0] - ignored[1] == {r"re:^mtp\.", r"re:^model\.layers\.4\."}
        assert "mtp.fc" in ignored[1]
    else:
        assert ignored[0] - ignored[1] == {r"re:^model\.layers\.3\."}
        assert ignored[1] >= {
            "model.layers.3.eh_proj",
            "model.layers.3.head",
            "model.layers.3.mlp.gate",
            r"re:^model\.layers\.3\.mlp\.experts\.",
        }

    reports = [
        json.loads((tmp_path / name / "quantization_report.json").read_text())
        for name in ("exact", "rounded")
    ]
    carried = [sum(report["model"]["carried"].values()) for report in reports]
    assert carried[0] - carried[1] == len(ROUNDED[family])
    remarks = {step["step"]: " ".join(step["remarks"]) for step in reports[1]["steps"]}
    said = f"{len(ROUNDED[family])} linears of layers that draft tokens"
    assert f"{said} will be rounded" in remarks["plan"]
    assert f"{said} were rounded without calibration." in remarks["merge"]


def test_what_ignore_names_stays_exact_in_draft_layers_too(
    quantize: Callable[..., Done], tmp_path: Path
) -> None:
    add_draft_layer(zoo.make("qwen3_5", tmp_path / "source"), "qwen3_5")
    # vLLM has gate and up as one.
    ignore = ["o_proj", "mtp.layers.0.mlp.up_proj"]
    done = quantize("out", method="minmax", draft_layers=True, ignore=ignore)
    assert done.returncode == 0, done.stderr
    found = {
        name.removeprefix("mtp.layers.0.").removesuffix(".weight_packed")
        for name in tensors_of(tmp_path / "out")
        if name.startswith("mtp.") and name.endswith(".weight_packed")
    }
    assert found == {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    ignored = set(config["quantization_config"]["ignore"])
    assert ignored >= {f"mtp.layers.0.{name}" for name in ("self_attn.o_proj", *MLP[:2])}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "the model has no layers that draft tokens"),
        ({"format": "gptq"}, "gptq is not known to be served with rounded draft layers"),
        (
            {"activations": "int8-static", "weights": {"bits": 8, "group_size": -1}},
            "int8-static activations need calibration, which does not run through draft layers",
        ),
    ],
)
def test_draft_layers_that_cannot_be_rounded_are_refused(
    changes: dict[str, Any], said: str, quantize: Callable[..., Done], tmp_path: Path
) -> None:
    zoo.make("qwen3_5", tmp_path / "source")
    done = quantize("out", **{"draft_layers": True, **changes})
    assert done.returncode == 2
    assert f"quantization.draft_layers: {said}" in done.stderr


def test_draft_layers_unlike_every_block_are_refused(
    quantize: Callable[..., Done], tmp_path: Path
) -> None:
    source = zoo.make("glm4_moe", tmp_path / "source")
    add_draft_layer(source, "glm4_moe")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.3.self_attn.q_proj.weight"
    tensors[name] = tensors[name][:32].contiguous()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    done = quantize("out", method="minmax", draft_layers=True)
    assert done.returncode == 2
    said = "no block of the model has the linears of its draft layers"
    assert f"quantization.draft_layers: {said}" in done.stderr
