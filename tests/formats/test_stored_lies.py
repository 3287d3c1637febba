"""Quantized checkpoints that were made to hurt: read, or refused in lines; never a traceback."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stored_checkpoints import write
from torch import Tensor

from quantlib.checkpoint.tensors import read_tensor
from quantlib.errors import InvalidInputError
from quantlib.formats.stored import described, plain

Sample = tuple[dict[str, Tensor], dict[str, Any]]


def fp8() -> Sample:
    codes = torch.ones(48, 64).to(torch.float8_e4m3fn)
    config = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [32, 32]}
    tensors = {"a.weight": codes, "a.weight_scale_inv": torch.ones(2, 2), "a.bias": torch.ones(48)}
    return tensors, config | {"modules_to_not_convert": ["head"]}


def mxfp4() -> Sample:
    blocks = torch.ones(2, 8, 2, 16, dtype=torch.uint8)
    tensors = {"a.x_blocks": blocks, "a.x_scales": torch.ones(2, 8, 2, dtype=torch.uint8)}
    return tensors, {"quant_method": "mxfp4", "modules_to_not_convert": ["head"]}


def compressed(layout: str) -> Callable[[], Sample]:
    def make() -> Sample:
        weights: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": False}
        weights |= {"strategy": "group", "group_size": 32, "actorder": "group", "dynamic": False}
        tensors = {
            "a.weight_packed": torch.ones(48, 8, dtype=torch.int32),
            "a.weight_scale": torch.ones(48, 2),
            "a.weight_zero_point": torch.ones(6, 2, dtype=torch.int32),
            "a.weight_g_idx": (torch.arange(64) % 2).to(torch.int32),
            "a.weight_shape": torch.tensor([48, 64]),
        }
        if layout == "float-quantized":
            weights = {"num_bits": 8, "type": "float", "strategy": "block"}
            weights |= {"block_structure": [16, 32]}
            codes = torch.ones(48, 64).to(torch.float8_e4m3fn)
            tensors = {"a.weight": codes, "a.weight_scale": torch.ones(3, 2)}
        if layout == "int-quantized":
            weights = {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": False}
            tensors = {
                "a.weight": torch.ones(48, 64).to(torch.int8),
                "a.weight_scale": torch.ones(1),
            }
            tensors["a.weight_zero_point"] = torch.ones(1, dtype=torch.int8)
        if layout == "nvfp4-pack-quantized":
            weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
            scales = torch.ones(48, 4).to(torch.float8_e4m3fn)
            packed = torch.ones(48, 32, dtype=torch.uint8)
            tensors = {"a.weight_packed": packed, "a.weight_scale": scales}
            tensors["a.weight_global_scale"] = torch.ones(1)
        group = {"targets": ["Linear"], "weights": weights, "format": layout}
        config = {"quant_method": "compressed-tensors", "format": layout, "ignore": ["re:head"]}
        return tensors, config | {
            "config_groups": {"g": group},
            "quantization_status": "compressed",
        }

    return make


def awq() -> Sample:
    tensors = {
        "a.qweight": torch.ones(64, 6, dtype=torch.int32),
        "a.qzeros": torch.ones(2, 6, dtype=torch.int32),
        "a.scales": torch.ones(2, 48).half(),
    }
    return tensors, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}


def gptq() -> Sample:
    tensors = {
        "a.qweight": torch.ones(6, 32, dtype=torch.int32),
        "a.qzeros": torch.ones(2, 3, dtype=torch.int32),
        "a.scales": torch.ones(2, 32).half(),
        "a.g_idx": (torch.arange(64) // 32).to(torch.int32),
    }
    config = {"quant_method": "gptq", "bits": 3, "group_size": 32, "desc_act": True, "sym": True}
    return tensors, config | {"dynamic": {"+:b": {"bits": 4}}, "checkpoint_format": "gptq"}


SAMPLES = {
    "fp8": fp8,
    "mxfp4": mxfp4,
    "pack": compressed("pack-quantized"),
    "float": compressed("float-quantized"),
    "int": compressed("int-quantized"),
    "nvfp4": compressed("nvfp4-pack-quantized"),
    "awq": awq,
    "gptq": gptq,
}
ODD = [None, True, False, 0, -1, 1, 3, 5, 7, 8, 16, 33, 64, 10**30, 0.5, 1e300, "", "int", "re:("]
ODD += ["x" * 9000, "\n\x1b[2J", [], [0, 0], [-1, 2], ["x"], [[]], {}, {"a": 1}, [10**30, 3]]
DTYPES = [torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.float32]
DTYPES += [torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.bool]


def spoil_config(config: dict[str, Any], chance: random.Random) -> None:
    holder: Any = config
    while True:
        inner = [value for value in holder.values() if isinstance(value, dict) and value]
        if not inner or chance.random() < 0.35:
            break
        holder = chance.choice(inner)
    key = chance.choice(list(holder))
    match chance.randrange(4):
        case 0:
            del holder[key]
        case 1:
            holder[chance.choice(["offset", "group_size", "dynamic", "bits", "ignore"])] = (
                chance.choice(ODD)
            )
        case _:
            holder[key] = copy.deepcopy(chance.choice(ODD))


def spoil_tensors(tensors: dict[str, Tensor], chance: random.Random) -> None:
    name = chance.choice(list(tensors))
    tensor = tensors.pop(name)
    match chance.randrange(6):
        case 0:
            return
        case 1:
            name = chance.choice([f"{name}_scale_inv", f"b.{name}", name.rpartition(".")[2]])
        case 2:
            tensor = tensor.to(chance.choice(DTYPES))
        case 3:
            shape = list(tensor.shape) or [1]
            shape[chance.randrange(len(shape))] = chance.choice([0, 1, 2, 3, 5, 63, 65])
            tensor = torch.ones(shape).to(tensor.dtype)
        case 4:
            tensor = tensor.unsqueeze(0) if chance.random() < 0.5 else tensor.flatten()
        case 5:
            data = tensor.contiguous().flatten().view(torch.uint8)
            tensor = torch.randint_like(data, 256).view(tensor.dtype).reshape(tensor.shape)
    tensors[name] = tensor


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_samples_are_sound(tmp_path: Path, sample: str) -> None:
    read = plain(write(tmp_path, *SAMPLES[sample]()))
    for name in read.tensors:
        read_tensor(read, name)


@pytest.mark.parametrize("sample", SAMPLES)
def test_damage_at_random_is_read_or_refused(tmp_path: Path, sample: str) -> None:
    chance = random.Random(14)
    torch.manual_seed(14)
    refused = 0
    for _ in range(250):
        tensors, config = SAMPLES[sample]()
        for _ in range(chance.randint(1, 2)):
            if chance.random() < 0.5 and config:
                spoil_config(config, chance)
            elif tensors:
                spoil_tensors(tensors, chance)
        checkpoint = write(tmp_path, tensors, config, chance.choice([None, "bfloat16"]))
        try:
            read = plain(checkpoint)
            described(checkpoint)
            for name, info in read.tensors.items():
                if info.dtype in ("BF16", "F16", "F32"):
                    assert read_tensor(read, name).shape == info.shape
        except InvalidInputError as error:
            refused += 1
            text = str(error)
            assert len(text.splitlines()) == len(error.problems)
            assert text.isprintable() or "\n" in text
            assert len(text) < 30_000
    assert refused > 60
