"""AWQ and GPTQ checkpoints against references written from the formats' descriptions.

AutoAWQ, AutoGPTQ and GPTQModel are not installed: the functions here unpack code by code what their
documentation and their pack functions lay out, and compute ``(code - zero) * scale`` in the dtype
of the scales, as their ``dequantize`` functions do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored_checkpoints import Noted, check, refusals, write
from torch import Tensor

from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
from quantlib.formats.stored import described, plain

IN, OUT = 128, 96


def words(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)


def factors(*shape: int, dtype: torch.dtype) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.1 + 1e-3).to(dtype)


def bits_of(column: np.ndarray, count: int, bits: int) -> list[int]:
    """Codes from words, by their bits: the first code in the lowest bits of the first word."""
    whole = sum(int(word) << (32 * at) for at, word in enumerate(column.astype(np.uint32)))
    return [whole >> (bits * at) & ((1 << bits) - 1) for at in range(count)]


def awq_reference(qweight: Tensor, qzeros: Tensor, scales: Tensor, size: int) -> Tensor:
    """AWQ's gemm layout: eight outputs to a word, in the order 0, 2, 4, 6, 1, 3, 5, 7."""

    def unpack(packed: Tensor) -> Tensor:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        rows = packed.shape[0]
        codes = torch.empty(rows, packed.shape[1] * 8)
        for place, output in enumerate(order):
            codes[:, output::8] = ((packed >> (4 * place)) & 15).float()
        return codes

    group = torch.arange(qweight.shape[0]) // size
    codes = (unpack(qweight) - unpack(qzeros)[group]).to(scales.dtype)
    return (codes * scales[group]).t().contiguous()


def gptq_reference(tensors: dict[str, Tensor], bits: int, index: Tensor, less: int) -> Tensor:
    """GPTQ's layout: codes one behind the other along the input, zeros along the outputs."""
    qweight, qzeros = tensors["qweight"].numpy(), tensors["qzeros"].numpy()
    inputs, outputs = qweight.shape[0] * 32 // bits, qweight.shape[1]
    codes = torch.tensor([bits_of(qweight[:, at], inputs, bits) for at in range(outputs)])
    zeros = torch.tensor([bits_of(row, outputs, bits) for row in qzeros]) + less
    scales = tensors["scales"]
    difference = (codes - zeros.t()[:, index]).to(scales.dtype)
    return difference * scales.t()[:, index]


def named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"l.0.up.{name}": tensor for name, tensor in tensors.items()}


def awq(size: int, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    groups = 1 if size == -1 else IN // size
    return {
        "qweight": words(IN, OUT // 8),
        "qzeros": words(groups, OUT // 8, seed=2),
        "scales": factors(groups, OUT, dtype=dtype),
    }


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


@pytest.mark.parametrize("size", [-1, 32, 64])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_awq(tmp_path: Path, size: int, dtype: str) -> None:
    tensors = awq(size)
    columns = IN if size == -1 else size
    expected = awq_reference(*tensors.values(), columns).to(getattr(torch, dtype))
    quantization = AWQ | {"group_size": size, "modules_to_not_convert": ["visual"]}
    other = {"l.0.up.bias": torch.ones(OUT), "visual.weight": torch.ones(4, 4)}
    checkpoint = write(tmp_path, named(tensors) | other, quantization, dtype)
    check(checkpoint, "l.0.up.weight", expected)
    assert set(plain(checkpoint).tensors) == {"l.0.up.weight", *other}
    assert str(described(checkpoint)).startswith(
        f"AWQ INT4 {'per channel' if size < 0 else 'group'}"
    )


def gptq(bits: int, size: int, ordered: bool = False) -> tuple[dict[str, Tensor], Tensor]:
    groups = 1 if size == -1 else -(-IN // size)
    index = torch.arange(IN) // (IN if size == -1 else size)
    if ordered:
        index = index[torch.randperm(IN, generator=torch.Generator().manual_seed(5))]
    tensors = {
        "qweight": words(IN * bits // 32, OUT),
        "qzeros": words(groups, OUT * bits // 32, seed=2),
        "scales": factors(groups, OUT, dtype=torch.float16),
        "g_idx": index.to(torch.int32),
    }
    return tensors, index


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [-1, 32, 48])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq(tmp_path: Path, bits: int, size: int, ordered: bool, version: int) -> None:
    tensors, index = gptq(bits, size, ordered)
    expected = gptq_reference(tensors, bits, index, less=2 - version)
    quantization = GPTQ | {"bits": bits, "group_size": size, "desc_act": ordered}
    if version == 2:
        quantization["checkpoint_format"] = "gptq_v2"
    if not ordered:
        del tensors["g_idx"]
    checkpoint = write(tmp_path, named(tensors), quantization, "float16")
    check(checkpoint, "l.0.up.weight", expected)


def test_gptq_of_several_widths(tmp_path: Path) -> None:
    four, index = gptq(4, 32)
    eight, _ = gptq(8, -1)
    rules = {r"+:l\.1\.": {"bits": 8, "group_size": -1}, r"-:lm_head": {}}
    tensors = named(four) | {f"l.1.up.{name}": tensor for name, tensor in eight.items()}
    checkpoint = write(tmp_path, tensors, GPTQ | {"dynamic": rules}, "float16")
    check(checkpoint, "l.0.up.weight", gptq_reference(four, 4, index, 1))
    check(checkpoint, "l.1.up.weight", gptq_reference(eight, 8, torch.zeros(IN).long(), 1))
    assert "GPTQ INT4 group 32 and INT8 per channel" in str(described(checkpoint))


def test_what_is_read_for_some_rows(tmp_path: Path) -> None:
    tensors = awq(32)
    checkpoint = write(tmp_path, named(tensors), AWQ)
    noted = Noted(FolderSource(tmp_path))
    read = plain(type(checkpoint)(noted, checkpoint.config, checkpoint.tensors))
    part = read.info("l.0.up.weight").part("rows", 40 * IN, (16, IN))
    read.source.read(part.file, part.start, part.bytes)
    # They lie transposed: no range of bytes holds some rows.
    assert sum(noted.reads) == sum(tensor.nbytes for tensor in tensors.values())


FAULTS: dict[str, tuple[dict[str, Tensor], dict[str, Any], str]] = {
    "no scales": (
        {name: tensor for name, tensor in awq(32).items() if name != "scales"},
        AWQ,
        "l.0.up: holds qweight, qzeros, but no scales",
    ),
    "scales of other groups": (awq(64), AWQ, "l.0.up.scales: has shape [2, 96], not [4, 96] as"),
    "zeros of another dtype": (
        awq(32) | {"qzeros": torch.ones(4, 12)},
        AWQ,
        "l.0.up.qzeros: has dtype F32, not I32",
    ),
    "a plain weight too": (
        awq(32) | {"weight": torch.ones(OUT, IN)},
        AWQ,
        "l.0.up.weight: is there, and so is l.0.up.qweight",
    ),
    "named as plain": (
        awq(32),
        AWQ | {"modules_to_not_convert": ["l.0"]},
        "l.0.up.qweight: is quantized, but the config names it",
    ),
    "another version": (
        awq(32),
        AWQ | {"version": "gemv"},
        "version: 'gemv' is not read; what is: gemm",
    ),
    "bits": (awq(32), AWQ | {"bits": 3}, "bits: 3 is not read; what is: 4"),
    "bits that are true": (awq(32), AWQ | {"bits": True}, "bits: True is not read"),
    "groups that do not divide": (
        awq(32),
        AWQ | {"group_size": 48},
        "l.0.up.qweight: has 128 inputs, which groups of 48 do not divide",
    ),
    "group size": (awq(32), AWQ | {"group_size": 0}, "group_size: 0 is no number of columns"),
    "another field": (awq(32), AWQ | {"shift": 2}, "shift: 2 is unknown, and may change"),
    "GPTQ in Marlin's layout": (
        gptq(4, 32)[0],
        GPTQ | {"checkpoint_format": "marlin"},
        "checkpoint_format: 'marlin' is not read; what is: gptq, gptq_v2",
    ),
    "GPTQ without an order": (
        {name: tensor for name, tensor in gptq(4, 32)[0].items() if name != "g_idx"},
        GPTQ | {"desc_act": True},
        "l.0.up.qweight: the config says desc_act: no l.0.up.g_idx",
    ),
    "GPTQ of other bits": (
        gptq(4, 32)[0],
        GPTQ | {"bits": 8},
        "l.0.up.scales: has shape [4, 96], not",
    ),
    "GPTQ of 5 bits": (
        gptq(4, 32)[0],
        GPTQ | {"bits": 5},
        "bits: 5 is not read; what is: 2, 3, 4, 8",
    ),
    "a rule that leaves out": (
        gptq(4, 32)[0],
        GPTQ | {"dynamic": {"-:l": {}}},
        "l.0.up.qweight: is quantized, but a rule of the config (dynamic) leaves it out",
    ),
    "a rule that is no pattern": (
        gptq(4, 32)[0],
        GPTQ | {"dynamic": {"-:(": {}}},
        "dynamic: '-:(' is no regular expression",
    ),
    "an index that is short": (
        gptq(4, 32)[0] | {"g_idx": torch.zeros(5, dtype=torch.int32)},
        GPTQ,
        "l.0.up.g_idx: has shape [5], not [128] as l.0.up.qweight has 128 inputs",
    ),
    "words of codes in a row": (
        gptq(4, 32)[0] | {"qweight": words(4)},
        GPTQ,
        "l.0.up.qweight: has shape [4]: no matrix",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_line(tmp_path: Path, fault: str) -> None:
    tensors, quantization, says = FAULTS[fault]
    assert says in refusals(write(tmp_path, named(tensors), quantization))


def test_an_index_beyond_the_groups_is_refused_when_it_is_read(tmp_path: Path) -> None:
    for wrong in (-1, 4, 2**31 - 1):
        tensors, _ = gptq(4, 32)
        tensors["g_idx"][17] = wrong
        read = plain(write(tmp_path / str(wrong), named(tensors), GPTQ))
        with pytest.raises(
            InvalidInputError, match=r"^l.0.up.g_idx: names groups outside of the 4"
        ):
            read.read("l.0.up.weight")


def test_a_huge_group_is_a_whole_row(tmp_path: Path) -> None:
    tensors, index = gptq(4, -1)
    checkpoint = write(tmp_path, named(tensors), GPTQ | {"group_size": 10**30}, "float16")
    check(checkpoint, "l.0.up.weight", gptq_reference(tensors, 4, index, 1))
