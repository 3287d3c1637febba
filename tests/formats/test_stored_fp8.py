"""FP8 and MXFP4 checkpoints against transformers' own dequantization, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stored_checkpoints import Noted, check, refusals, write
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.errors import InvalidInputError
from quantlib.formats.stored import described, plain

BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
BLOCKS |= {"weight_block_size": [128, 128]}
SCALES = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}


def codes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).mul(60).to(torch.float8_e4m3fn)


def scales(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.01 + 1e-4


def by_transformers(weight: Tensor, scale: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return Fp8Dequantize(None)._dequantize_one(weight, scale, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_blocks_are_transformers(tmp_path: Path, dtype: str) -> None:
    weight, scale = codes(256, 384), scales(2, 3)
    norm = torch.randn(384).bfloat16()
    tensors = {"a.norm.weight": norm, "a.weight": weight, "a.weight_scale_inv": scale}
    checkpoint = write(tmp_path, tensors, BLOCKS, dtype)
    check(checkpoint, "a.weight", by_transformers(weight, scale, getattr(torch, dtype)))
    read = plain(checkpoint)
    assert set(read.tensors) == {"a.norm.weight", "a.weight"}
    assert torch.equal(read_tensor(read, "a.norm.weight"), norm)
    short = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]
    assert described(checkpoint) == f"FP8 block 128x128, dequantized to {short} while reading"


def test_last_blocks_may_be_smaller(tmp_path: Path) -> None:
    """DeepSeek's ``weight_dequant``, written from its description: row // 128, column // 128."""
    weight, scale = codes(200, 320), scales(2, 3)
    rows, columns = torch.arange(200) // 128, torch.arange(320) // 128
    expected = (weight.float() * scale[rows][:, columns]).bfloat16()
    check(
        write(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scale}, BLOCKS),
        "a.weight",
        expected,
    )


@pytest.mark.parametrize("kind", ["E8M0", "U8", "BF16"])
def test_scales_of_other_dtypes(tmp_path: Path, kind: str) -> None:
    weight = codes(256, 128)
    powers = torch.tensor([[119], [126]], dtype=torch.uint8)
    scale = {
        "E8M0": powers.view(torch.float8_e8m0fnu),
        "U8": powers,
        "BF16": scales(2, 1).bfloat16(),
    }[kind]
    tensors = {"a.weight": weight, "a.weight_scale_inv": scale}
    checkpoint = write(tmp_path, tensors, BLOCKS | {"scale_fmt": "ue8m0"})
    check(checkpoint, "a.weight", by_transformers(weight, scale))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (96, 1)])
@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
def test_scales_per_tensor_and_channel(tmp_path: Path, shape: tuple[int, ...], name: str) -> None:
    weight, scale = codes(96, 80), scales(*shape)
    expected = by_transformers(weight, scale)
    tensors = {"a.weight": weight, f"a.{name}": scale, "a.input_scale": scales(1)}
    tensors |= {"a.k_scale": scales(1), "a.activation_scale": scales()}
    checkpoint = write(tmp_path, tensors, SCALES)
    check(checkpoint, "a.weight", expected)
    assert set(plain(checkpoint).tensors) == {"a.weight"}
    assert str(described(checkpoint)).startswith(
        "FP8 per channel," if shape == (96, 1) else "FP8 per tensor,"
    )


def test_experts_in_one_tensor_are_read_one_by_one(tmp_path: Path) -> None:
    weight, scale = codes(4, 256, 128), scales(4, 2, 1)
    tensors = {"a.experts.gate_up_proj": weight, "a.experts.gate_up_proj_scale_inv": scale}
    checkpoint = write(tmp_path, tensors, BLOCKS)
    expected = by_transformers(weight, scale)
    check(checkpoint, "a.experts.gate_up_proj", expected)
    noted = Noted(FolderSource(tmp_path))
    read = plain(type(checkpoint)(noted, checkpoint.config, checkpoint.tensors))
    info = read.info("a.experts.gate_up_proj")
    part = info.part("expert", 2 * 256 * 128, (256, 128))
    data = read.source.read(part.file, part.start, part.bytes)
    assert torch.equal(torch.frombuffer(data, dtype=torch.bfloat16).reshape(256, 128), expected[2])
    assert sum(noted.reads) == 256 * 128 + scale.numel() * 4


def test_modules_that_are_not_converted_stay(tmp_path: Path) -> None:
    gate = torch.randn(96, 80).bfloat16()
    tensors = {"a.weight": codes(96, 80), "a.weight_scale": scales(1), "lm_head.weight": gate}
    config = SCALES | {"modules_to_not_convert": ["lm_head"]}
    read = plain(write(tmp_path, tensors, config))
    assert torch.equal(read_tensor(read, "lm_head.weight"), gate)
    assert read.info("lm_head.weight").file == "model.safetensors"


def test_the_dtype_is_that_of_the_plain_tensors_where_the_config_names_none(tmp_path: Path) -> None:
    tensors = {"a.weight": codes(96, 80), "a.weight_scale": scales(96, 1)}
    checkpoint = write(tmp_path / "none", tensors, SCALES, dtype=None)
    assert plain(checkpoint).info("a.weight").dtype == "BF16"
    half = tensors | {"norm.weight": torch.ones(80).half()}
    checkpoint = write(tmp_path / "half", half, SCALES, dtype=None)
    assert plain(checkpoint).info("a.weight").dtype == "F16"


def test_memory_is_a_small_multiple_of_the_linear(tmp_path: Path) -> None:
    tensors = {f"{name}.weight": codes(4096, 8192) for name in "abc"}
    tensors |= {f"{name}.weight_scale_inv": scales(32, 64) for name in "abc"}
    write(tmp_path, tensors, BLOCKS)
    program = """
import sys, torch
from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.formats.stored import plain
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
read = plain(Checkpoint.open(FolderSource(sys.argv[1])))
small = read.info("a.weight").part("x", 0, (32, 8192))
read.source.read(small.file, small.start, small.bytes)
before = peak()
weight = read_tensor(read, "b.weight")
print((peak() - before) / weight.nbytes)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    # Threads and libraries take something up now and then, which has nothing to do with it.
    assert min(float(subprocess.check_output(command, text=True)) for _ in range(3)) < 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_mxfp4_is_transformers(tmp_path: Path, dtype: str) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 40, 2, 16), generator=generator, dtype=torch.uint8)
    exponents = torch.randint(90, 140, (3, 40, 2), generator=generator, dtype=torch.uint8)
    bias = torch.randn(3, 40).bfloat16()
    name = "layers.0.mlp.experts.gate_up_proj"
    tensors = {f"{name}_blocks": blocks, f"{name}_scales": exponents, f"{name}_bias": bias}
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    checkpoint = write(tmp_path, tensors, quantization, dtype)
    expected = convert_moe_packed_tensors(blocks, exponents).to(getattr(torch, dtype))
    assert expected.shape == (3, 64, 40)
    check(checkpoint, name, expected)
    assert set(plain(checkpoint).tensors) == {name, f"{name}_bias"}
    noted = Noted(FolderSource(tmp_path))
    read = plain(type(checkpoint)(noted, checkpoint.config, checkpoint.tensors))
    part = read.info(name).part("expert", 64 * 40, (64, 40))
    read.source.read(part.file, part.start, part.bytes)
    assert sum(noted.reads) == blocks[1].numel() + exponents[1].numel()


def test_mxfp4_of_every_code_and_scale(tmp_path: Path) -> None:
    blocks = torch.arange(256, dtype=torch.uint8).repeat(1, 256, 1).reshape(1, 256, 16, 16)
    exponents = torch.arange(256, dtype=torch.uint8).clamp(max=254).reshape(1, 256, 1)
    exponents = exponents.repeat(1, 1, 16)
    tensors = {"x_blocks": blocks, "x_scales": exponents}
    checkpoint = write(tmp_path, tensors, {"quant_method": "mxfp4"})
    expected = convert_moe_packed_tensors(blocks, exponents)
    check(checkpoint, "x", expected)
    exponents[0, 7, 3] = 255
    damaged = plain(write(tmp_path / "nan", tensors, {"quant_method": "mxfp4"}))
    with pytest.raises(InvalidInputError, match=r"^x_scales: holds NaN \(the exponent 255\)"):
        damaged.read("x")


FAULTS = {
    "no scale": (
        {"a.weight": codes(8, 8)},
        BLOCKS,
        "a.weight: is in FP8, but there is no a.weight_sc",
    ),
    "no weight": (
        {"a.weight_scale": scales(1)},
        SCALES,
        "a.weight_scale: is a scale, but there is no",
    ),
    "scale shape": (
        {"a.weight": codes(256, 128), "a.weight_scale_inv": scales(3, 1)},
        BLOCKS,
        r"a.weight_scale_inv: has shape [3, 1]; of a.weight [256, 128] it has to be [2, 1]",
    ),
    "scale dtype": (
        {"a.weight": codes(8, 8), "a.weight_scale": scales(1).to(torch.int32)},
        SCALES,
        "a.weight_scale: has dtype I32",
    ),
    "plain weight with a scale": (
        {"a.weight": codes(8, 8).float(), "a.weight_scale": scales(1)},
        SCALES,
        "a.weight: has dtype F32, not F8_E4M3, though there is a.weight_scale",
    ),
    "two scales": (
        {"a.weight": codes(8, 8), "a.weight_scale": scales(1), "a.weight_scale_inv": scales(1)},
        SCALES,
        "which has a.weight_scale too",
    ),
    "named as plain": (
        {"b.a.weight": codes(8, 8), "b.a.weight_scale": scales(1)},
        SCALES | {"ignored_layers": ["b"]},
        "b.a.weight: is in FP8, but the config names it among the modules that are not",
    ),
    "a vector": (
        {"a.weight": codes(8), "a.weight_scale": scales(1)},
        SCALES,
        "a.weight: has shape [8]: no matrix",
    ),
    "an unknown field": (
        {"a.weight": codes(8, 8), "a.weight_scale": scales(1)},
        SCALES | {"rotation": "hadamard"},
        "quantization_config.rotation: 'hadamard' is unknown, and may change what the codes",
    ),
    "a block of another kind": (
        {"a.weight": codes(8, 8), "a.weight_scale": scales(1)},
        BLOCKS | {"weight_block_size": [128]},
        "weight_block_size: [128] is no two positive numbers",
    ),
    "another fmt": (
        {"a.weight": codes(8, 8), "a.weight_scale": scales(1)},
        SCALES | {"fmt": "e5m2"},
        "fmt: 'e5m2' is not read; what is: e4m3",
    ),
    "nothing": (
        {"a.weight": codes(8, 8).float()},
        SCALES,
        "says 'fp8', but no tensor is stored so",
    ),
    "no blocks": (
        {"x_scales": codes(1, 4, 2).view(torch.uint8)},
        {"quant_method": "mxfp4"},
        "x_scales: are scales, but there are no blocks",
    ),
    "no scales of blocks": (
        {"x_blocks": codes(1, 4, 2, 16).view(torch.uint8)},
        {"quant_method": "mxfp4"},
        "x_blocks: are blocks, but there is no x_scales",
    ),
    "blocks of another size": (
        {
            "x_blocks": codes(1, 4, 2, 8).view(torch.uint8),
            "x_scales": codes(1, 4, 2).view(torch.uint8),
        },
        {"quant_method": "mxfp4"},
        "x_blocks: has shape [1, 4, 2, 8], not [experts, columns, blocks, 16]",
    ),
    "scales of other blocks": (
        {
            "x_blocks": codes(1, 4, 2, 16).view(torch.uint8),
            "x_scales": codes(1, 4, 3).view(torch.uint8),
        },
        {"quant_method": "mxfp4"},
        "x_scales: has shape [1, 4, 3], not [1, 4, 2] as x_blocks asks for",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_line(tmp_path: Path, fault: str) -> None:
    tensors, quantization, says = FAULTS[fault]
    assert says in refusals(write(tmp_path, tensors, quantization))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    tensors = {f"{number}.weight": codes(8, 8) for number in range(9)}
    tensors |= {"x.weight": codes(8, 8), "x.weight_scale": scales(3)}
    text = refusals(write(tmp_path, tensors, SCALES))
    assert "0.weight: is in FP8, but there is no 0.weight_scale_inv, and so with 8 more" in text
    assert "x.weight_scale: has shape [3]; of x.weight [8, 8] it has to be [] (per tensor)" in text
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "hqq"},
        {"quant_method": "fp_quant"},
        {"quant_method": 7},
        {"bits": 4},
        "int4",
        ["fp8"],
        {"quant_method": "fp8\nerror: x"},
    ],
)
def test_other_methods_are_refused_in_a_line(tmp_path: Path, quantization: object) -> None:
    text = refusals(write(tmp_path, {"a.weight": codes(8, 8)}, quantization))
    assert len(text.splitlines()) == 1
    assert "what is: awq, compressed-tensors, fp8, gptq, mxfp4" in text


def test_huge_blocks_are_whole_matrices(tmp_path: Path) -> None:
    weight, scale = codes(96, 80), scales(1, 1)
    tensors = {"a.weight": weight, "a.weight_scale_inv": scale}
    checkpoint = write(tmp_path, tensors, BLOCKS | {"weight_block_size": [10**30, 10**30]})
    check(checkpoint, "a.weight", by_transformers(weight, scale))
