"""Whether weights are the original's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.evaluation.weight_likeness import LEAST_EXPLAINED, explained, weight_findings
from quantlib.manager import QuantizationManager
from quantlib.store import LocalStore

RANDOM = torch.Generator().manual_seed(0)
W = torch.randn(32, 96, generator=RANDOM)


def rounded(weight: torch.Tensor, levels: int) -> torch.Tensor:
    scale = weight.abs().amax(1, keepdim=True) / levels
    return (weight / scale).round() * scale


@pytest.mark.parametrize(("levels", "least"), [(127, 0.999), (7, 0.97), (1, 0.35)])
def test_rounded_weights_are_explained(levels: int, least: float) -> None:
    assert explained(W, rounded(W, levels)) > least > LEAST_EXPLAINED


def test_scales_of_rows_and_columns_are_no_difference() -> None:
    columns = torch.rand(1, 96, generator=RANDOM) * 10 + 0.1
    rows = torch.rand(32, 1, generator=RANDOM) * 10 + 0.1
    assert explained(W, W * columns * rows) > 0.999
    assert explained(W, rounded(W * columns * rows, 7)) > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_weights_are_explained_by_chance_alone(seed: int) -> None:
    shuffled = W.flatten()[torch.randperm(W.numel(), generator=RANDOM.manual_seed(seed))]
    assert explained(W, shuffled.view_as(W)) < 0.1
    assert explained(W, W[torch.randperm(32, generator=RANDOM)]) < LEAST_EXPLAINED


def test_nothing_is_like_zeros_and_anything_is_like_padding() -> None:
    assert explained(W, torch.zeros_like(W)) == 0
    assert explained(torch.zeros_like(W), W) == 1


@pytest.fixture(scope="module")
def quantized(
    tiny_llama: Path, small_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("quantized")
    recipe = small_recipe(quantization={"method": "minmax", "format": "compressed-tensors"})
    manager = QuantizationManager(recipe, str(tiny_llama), LocalStore(root / "store"), "cpu")
    manager.save(manager.quantize(), root / "checkpoint")
    return root / "checkpoint"


def findings(original: Path, published: Path, *, rotated: bool = False) -> list[str]:
    opened = (Checkpoint.open(FolderSource(folder)) for folder in (original, published))
    return weight_findings(*opened, rotated=rotated)


def test_a_checkpoint_holds_the_weights_of_its_original(tiny_llama: Path, quantized: Path) -> None:
    assert findings(tiny_llama, quantized) == []
    assert findings(tiny_llama, tiny_llama) == []


def damaged(quantized: Path, folder: Path, blocks: range) -> Path:
    """With the rows of one linear of some blocks in another order."""
    shutil.copytree(quantized, folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for block in blocks:
        name = f"model.layers.{block}.mlp.up_proj.weight_packed"
        path = folder / index[name]
        tensors = load_file(path)
        path.unlink()
        tensors[name] = tensors[name].flip(0).contiguous()
        save_file(tensors, path, {"format": "pt"})
    return folder


def test_one_damaged_linear_is_named(tiny_llama: Path, quantized: Path, tmp_path: Path) -> None:
    folder = damaged(quantized, tmp_path / "one", range(1, 2))
    assert findings(tiny_llama, folder) == [
        "model.layers.1.mlp.up_proj.weight holds other weights than the original's"
    ]
    # A turned model has no linear that is like its original's; one that has most is not turned.
    assert len(findings(tiny_llama, folder, rotated=True)) == 1


def test_several_are_counted(tiny_llama: Path, quantized: Path, tmp_path: Path) -> None:
    (found,) = findings(tiny_llama, damaged(quantized, tmp_path / "all", range(4)))
    assert found.endswith(
        "model.layers.2.mlp.up_proj.weight and 1 more hold other weights than the original's"
    )


def test_a_turned_model_of_others_is_left_to_its_figures(
    tiny_llama: Path, quantized: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    for path in other.glob("*.safetensors"):
        turned = {name: each.flip(0).contiguous() for name, each in load_file(path).items()}
        save_file(turned, path, {"format": "pt"})
    assert findings(other, quantized, rotated=True) == []
    (found,) = findings(other, quantized)
    assert found.endswith("more hold other weights than the original's")
