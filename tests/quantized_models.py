"""A tiny model as other quantizers would leave it, and the plain model that it then stands for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import FP4_VALUES, convert_moe_packed_tensors

Parts = tuple[dict[str, Tensor], Tensor]
"""The tensors of a linear by the last part of their names, and the weight that they stand for."""

BLOCKS = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [32, 32],
    "modules_to_not_convert": ["lm_head"],
}
FOUR_BITS: dict[str, Any] = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": 32,
}
PACKED = {
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "format": "pack-quantized",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": FOUR_BITS}},
}


def fp8_blocks(weight: Tensor) -> Parts:
    """FP8 in blocks of 32 by 32, dequantized by transformers."""
    rows, columns = weight.shape
    blocks = weight.float().reshape(rows // 32, 32, columns // 32, 32)
    scales = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scales[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
    restored = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)
    return {"weight": codes, "weight_scale_inv": scales}, restored


def packed(weight: Tensor) -> Parts:
    """Four bits in groups of 32, compressed and decompressed by compressed-tensors."""
    groups = weight.float().unflatten(1, (-1, 32))
    scales = (groups.abs().amax(-1) / 7).to(weight.dtype)
    scheme = QuantizationScheme(targets=["Linear"], weights=FOUR_BITS)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    tensors = compressor.compress({"weight": weight, "weight_scale": scales}, scheme)
    return tensors, compressor.decompress(dict(tensors), scheme)["weight"]


KINDS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Parts], str]] = {
    "fp8": (BLOCKS, fp8_blocks, "FP8 block 32x32"),
    "w4a16": (PACKED, packed, "compressed-tensors pack-quantized INT4 group 32"),
}
"""What the config says, what a linear becomes, and what the report says, by kind."""


def quantized_model(model: Path, folder: Path, kind: str) -> tuple[Path, Path]:
    """Two folders: a model with the linears of its blocks quantized, and the plain one it is."""
    stated, of_linear, _ = KINDS[kind]
    stored, restored = {}, {}
    for name, tensor in load_file(model / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            parts, restored[name] = of_linear(tensor)
            module = name.removesuffix(".weight")
            stored |= {f"{module}.{part}": value.contiguous() for part, value in parts.items()}
        else:
            stored[name] = restored[name] = tensor
    return _written(model, folder, stored, restored, stated)


def quantized_experts(model: Path, folder: Path) -> tuple[Path, Path]:
    """The same of a model of gpt_oss, with its experts in MXFP4."""
    stored, restored = {}, {}
    for name, tensor in load_file(model / "model.safetensors").items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            blocks, scales = mxfp4(tensor)
            restored[name] = convert_moe_packed_tensors(blocks, scales).contiguous()
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        else:
            stored[name] = restored[name] = tensor
    exact = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    stated = {"quant_method": "mxfp4", "modules_to_not_convert": exact}
    return _written(model, folder, stored, restored, stated)


def mxfp4(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Experts ``[experts, rows, columns]`` as gpt_oss stores them: blocks and scales."""
    groups = weights.float().transpose(1, 2).unflatten(2, (-1, 32))
    exponents = groups.abs().amax(-1, keepdim=True).log2().floor() - 2
    steps = (groups / exponents.exp2())[..., None] - torch.tensor(FP4_VALUES)
    codes = steps.abs().argmin(-1).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents[..., 0] + 127).to(torch.uint8)


def _written(
    model: Path,
    folder: Path,
    stored: dict[str, Tensor],
    restored: dict[str, Tensor],
    stated: dict[str, Any],
) -> tuple[Path, Path]:
    for path, held, config in (
        (folder / "stored", stored, {"quantization_config": stated}),
        (folder / "plain", restored, {}),
    ):
        shutil.copytree(model, path)
        save_file(held, path / "model.safetensors", {"format": "pt"})
        plain = json.loads((model / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(plain | config))
    return folder / "stored", folder / "plain"
