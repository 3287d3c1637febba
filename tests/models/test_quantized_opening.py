"""Quantized checkpoints opened as models: names and layouts are those of plain ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_models import BLOCKS, fp8_blocks, quantized_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.models import open_model
from quantlib.sources.folder import folder_problems


def contents(folder: Path) -> dict[str, Tensor]:
    assert folder_problems(folder) == []
    checkpoint, _ = open_model(FolderSource(folder))
    return {name: read_tensor(checkpoint, name) for name in checkpoint.tensors}


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = contents(one), contents(other)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("stacked", [True, False])
def test_experts_are_the_plain_ones(make_model: Any, tmp_path: Path, stacked: bool) -> None:
    model = make_model(
        tmp_path / "moe",
        "qwen3_moe",
        num_hidden_layers=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        stacked_experts=stacked,
    )
    if not stacked:
        assert_same(*quantized_model(model, tmp_path / "models", "fp8"))
        return
    tensors, restored = load_file(model / "model.safetensors"), {}
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".experts." in name:
            parts = [fp8_blocks(expert) for expert in tensor]
            stored[name] = torch.stack([part["weight"] for part, _ in parts])
            scales = [part["weight_scale_inv"] for part, _ in parts]
            stored[f"{name}_scale_inv"] = torch.stack(scales)
            restored[name] = torch.stack([whole for _, whole in parts])
        else:
            stored[name] = restored[name] = tensor
    assert len(stored) == len(tensors) + 4
    folders = tmp_path / "stored", tmp_path / "plain"
    for folder, held, config in zip(
        folders, (stored, restored), ({"quantization_config": BLOCKS}, {}), strict=True
    ):
        shutil.copytree(model, folder)
        save_file(held, folder / "model.safetensors", {"format": "pt"})
        told = json.loads((model / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(told))
    assert_same(*folders)


def test_names_without_their_prefix_are_completed(tiny_llama: Path, tmp_path: Path) -> None:
    folders = quantized_model(tiny_llama, tmp_path / "models", "fp8")
    for folder in folders:
        tensors = load_file(folder / "model.safetensors")
        bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        save_file(bare, folder / "model.safetensors", {"format": "pt"})
    assert_same(*folders)
    assert "model.layers.0.mlp.up_proj.weight" in contents(folders[0])
