"""compressed-tensors checkpoints against the package's own decompression, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from stored_checkpoints import Noted, check, refusals, write
from torch import Tensor

from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.errors import InvalidInputError
from quantlib.formats.stored import described, plain

ROWS, COLUMNS = 72, 192
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def chance() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def config(layout: str, weights: dict[str, Any], **other: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "format": layout}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": layout,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    } | other


def decompressed(layout: str, weights: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    scheme = QuantizationScheme.model_validate({"targets": ["Linear"], "weights": weights})
    compressor = BaseCompressor.get_value_from_registry(layout)
    return compressor.decompress(tensors, scheme)["weight"]


def words(rows: int, columns: int, bits: int) -> Tensor:
    """Random codes, packed."""
    per_word = 32 // bits
    top = 1 << (bits * per_word)
    count = (rows, -(-columns // per_word))
    values = torch.randint(0, top, count, generator=chance(), dtype=torch.int64)
    return (values - ((values >> 31) << 32)).to(torch.int32)


def module(
    layout: str,
    weights: dict[str, Any],
    dtype: torch.dtype = torch.bfloat16,
    columns: int = COLUMNS,
) -> dict[str, Tensor]:
    """Random tensors of one module."""
    bits, strategy = weights["num_bits"], weights.get("strategy", "group")
    size, per_word = weights.get("group_size") or columns, 32 // bits
    grid = {
        "tensor": (1,),
        "channel": (ROWS, 1),
        "block": (-(-ROWS // 8), -(-columns // 64)),
    }.get(strategy, (ROWS, columns // size))
    scales = (torch.rand(grid, generator=chance()) * 0.1 + 1e-3).to(dtype)
    tensors = {"weight_scale": scales}
    if layout == "pack-quantized":
        tensors["weight_packed"] = words(ROWS, columns, bits)
        tensors["weight_shape"] = torch.tensor([ROWS, columns])
        if not weights["symmetric"]:
            tensors["weight_zero_point"] = words(-(-ROWS // per_word), grid[1] * per_word, bits)
    elif weights["type"] == "int":
        most = 1 << (bits - 1)
        codes = torch.randint(-most, most, (ROWS, columns), generator=chance())
        tensors["weight"] = codes.to(torch.int8)
        if not weights["symmetric"]:
            zeros = torch.randint(-most, most, grid, generator=chance())
            tensors["weight_zero_point"] = zeros.to(torch.int8)
    else:
        codes = torch.randn(ROWS, columns, generator=chance()) * 50
        tensors["weight"] = codes.to(torch.float8_e4m3fn)
    if weights.get("actorder") == "group":
        index = torch.arange(columns) // size
        shuffled = index[torch.randperm(columns, generator=chance())]
        tensors["weight_g_idx"] = shuffled.to(torch.int32)
    return tensors


def named(tensors: dict[str, Tensor], prefix: str = "m.up") -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


CASES = [
    ("pack-quantized", {"num_bits": bits, "type": "int", "symmetric": symmetric, **grouping})
    for bits in (2, 3, 4, 8)
    for symmetric in (True, False)
    for grouping in (
        {"strategy": "channel"},
        {"strategy": "group", "group_size": 48},
        {"strategy": "group", "group_size": 32, "actorder": "group"},
    )
    if 32 % bits == 0 or grouping["strategy"] == "group"
]
CASES += [
    (layout, {"num_bits": 8, "type": kind, "symmetric": symmetric, **grouping})
    for layout, kind, symmetric in (
        ("int-quantized", "int", True),
        ("int-quantized", "int", False),
        ("naive-quantized", "int", False),
        ("naive-quantized", "float", True),
        ("float-quantized", "float", True),
    )
    for grouping in (
        {"strategy": "tensor"},
        {"strategy": "channel"},
        {"strategy": "group", "group_size": 64},
        {"strategy": "block", "block_structure": [8, 64]},
    )
]
CASES += [
    ("naive-quantized", {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"})
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("layout", "weights"), CASES, ids=str)
def test_is_what_the_package_decompresses(
    tmp_path: Path, layout: str, weights: dict[str, Any], dtype: torch.dtype
) -> None:
    tensors = module(layout, weights, dtype)
    expected = decompressed(layout, weights, tensors).to(torch.bfloat16)
    checkpoint = write(tmp_path, named(tensors), config(layout, weights))
    check(checkpoint, "m.up.weight", expected)
    assert set(plain(checkpoint).tensors) == {"m.up.weight"}


@pytest.mark.parametrize("shape", [(1,), ()], ids=str)
def test_nvfp4(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    tensors = {
        "weight_packed": torch.randint(0, 256, (ROWS, 96), generator=chance(), dtype=torch.uint8),
        "weight_scale": (torch.rand(ROWS, 12, generator=chance()) * 400).to(torch.float8_e4m3fn),
        "weight_global_scale": torch.full(shape, 1234.5),
    }
    expected = decompressed("nvfp4-pack-quantized", weights, tensors)
    activations = {"input_global_scale": torch.ones(1)}
    checkpoint = write(
        tmp_path, named(tensors | activations), config("nvfp4-pack-quantized", weights)
    )
    check(checkpoint, "m.up.weight", expected)
    assert "nvfp4-pack-quantized FP4 group 16, dequantized to BF16" in str(described(checkpoint))


def test_mxfp4_and_mxfp8(tmp_path: Path) -> None:
    exponents = torch.randint(100, 150, (ROWS, 6), generator=chance(), dtype=torch.uint8)
    pairs = torch.randint(0, 256, (ROWS, 96), generator=chance(), dtype=torch.uint8)
    codes = torch.randn(ROWS, COLUMNS, generator=chance()).to(torch.float8_e4m3fn)
    shared = {"type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    for layout, bits, tensors in (
        ("mxfp4-pack-quantized", 4, {"weight_packed": pairs, "weight_scale": exponents}),
        ("mxfp8-quantized", 8, {"weight": codes, "weight_scale": exponents}),
    ):
        weights = {"num_bits": bits} | shared
        expected = decompressed(layout, weights, tensors)
        checkpoint = write(tmp_path / layout, named(tensors), config(layout, weights))
        check(checkpoint, "m.up.weight", expected)


def test_groups_targets_and_ignored_modules(tmp_path: Path) -> None:
    four = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
    eight = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    fp8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    groups = {
        "some": {"targets": ["re:.*down$"], "weights": eight, "format": "int-quantized"},
        "most": {"targets": ["Linear"], "weights": four, "format": "pack-quantized"},
        "one": {"targets": ["l.1.down"], "weights": fp8, "format": "float-quantized"},
    }
    stated = config("mixed-precision", four, config_groups=groups, ignore=["re:.*gate$", "head"])
    kept = torch.randn(8, 8).bfloat16()
    parts = {
        "l.0.down": module("int-quantized", eight),
        "l.1.down": module("float-quantized", fp8),
        "l.0.up": module("pack-quantized", four),
    }
    tensors = {"l.0.gate.weight": kept, "head.weight": kept + 1, "l.0.norm.weight": kept[0] + 2}
    for name, found in parts.items():
        tensors |= named(found, name)
    checkpoint = write(tmp_path, tensors, stated)
    for name, layout, weights in (
        ("l.0.down", "int-quantized", eight),
        ("l.1.down", "float-quantized", fp8),
        ("l.0.up", "pack-quantized", four),
    ):
        check(checkpoint, f"{name}.weight", decompressed(layout, weights, parts[name]))
    read = plain(checkpoint)
    assert set(read.tensors) == {
        "l.0.gate.weight",
        "head.weight",
        "l.0.norm.weight",
        "l.0.down.weight",
        "l.1.down.weight",
        "l.0.up.weight",
    }
    assert torch.equal(read_tensor(read, "l.0.gate.weight"), kept)


def test_what_older_versions_wrote_is_read(tmp_path: Path) -> None:
    dense = {"format": "dense", "global_sparsity": 0.1, "sparsity_structure": "unstructured"}
    older = config("pack-quantized", PACKED, quantization_status="frozen", sparsity_config=dense)
    del older["quant_method"]
    checkpoint = write(tmp_path, spoiled(), older)
    assert plain(checkpoint).info("m.up.weight").shape == (ROWS, COLUMNS)


def test_a_row_range_reads_its_bytes_alone(tmp_path: Path) -> None:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}
    checkpoint = write(
        tmp_path, named(module("pack-quantized", weights)), config("pack-quantized", weights)
    )
    noted = Noted(FolderSource(tmp_path))
    read = plain(type(checkpoint)(noted, checkpoint.config, checkpoint.tensors))
    part = read.info("m.up.weight").part("rows", 8 * COLUMNS, (16, COLUMNS))
    read.source.read(part.file, part.start, part.bytes)
    assert sum(noted.reads) == 16 * COLUMNS // 2 + ROWS * 2 + 16


PACKED = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
WHOLE = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}


def spoiled(**changes: Any) -> dict[str, Tensor]:
    tensors = module("pack-quantized", PACKED) | changes
    return named({name: tensor for name, tensor in tensors.items() if tensor is not None})


FAULTS: dict[str, tuple[dict[str, Tensor], dict[str, Any], str]] = {
    "no scales": (
        spoiled(weight_scale=None),
        config("pack-quantized", PACKED),
        "m.up: holds weight_packed, weight_shape, but no weight_scale, which pack-quantized needs",
    ),
    "scale shape": (
        spoiled(weight_scale=torch.ones(ROWS, 5)),
        config("pack-quantized", PACKED),
        "m.up.weight_packed: has 24 words in a row, which 160 inputs do not fill",
    ),
    "scale rows": (
        spoiled(weight_scale=torch.ones(ROWS - 1, 6)),
        config("pack-quantized", PACKED),
        "m.up.weight_scale: has shape [71, 6], not [72, 6] as m.up.weight_packed [72, 24] and the",
    ),
    "scale dtype": (
        spoiled(weight_scale=torch.ones(ROWS, 6, dtype=torch.int8)),
        config("pack-quantized", PACKED),
        "m.up.weight_scale: has dtype I8, not BF16 or F16 or F32",
    ),
    "codes of another dtype": (
        spoiled(weight_packed=torch.ones(ROWS, 24, dtype=torch.int64)),
        config("pack-quantized", PACKED),
        "m.up.weight_packed: has dtype I64, not I32",
    ),
    "no zero points": (
        spoiled(),
        config("pack-quantized", PACKED | {"symmetric": False}),
        "but no weight_zero_point, which pack-quantized needs",
    ),
    "no index": (
        spoiled(),
        config("pack-quantized", PACKED | {"actorder": "group"}),
        "but no weight_g_idx",
    ),
    "twice": (
        spoiled(weight=torch.ones(ROWS, COLUMNS)),
        config("pack-quantized", PACKED),
        "m.up.weight: is there, and so is m.up.weight_packed",
    ),
    "ignored": (
        spoiled(),
        config("pack-quantized", PACKED, ignore=["re:m.*"]),
        "m.up.weight_packed: is quantized, but the config names it among those to ignore",
    ),
    "no group": (
        spoiled(),
        config(
            "pack-quantized", PACKED, config_groups={"a": {"targets": ["x"], "weights": PACKED}}
        ),
        "m.up.weight_packed: is quantized, but no group of the config says how",
    ),
    "another layout": (
        named(module("int-quantized", WHOLE)),
        config("pack-quantized", PACKED),
        "m.up: holds weight, weight_scale, but no weight_packed",
    ),
    "a rotation": (
        spoiled(),
        config("pack-quantized", PACKED, transform_config={"config_groups": {"u": {}}}),
        "quantization_config.transform_config: {'config_groups': {'u': {}}} is unknown, and may",
    ),
    "a setting of weights": (
        spoiled(),
        config("pack-quantized", PACKED | {"offset": 3}),
        "config_groups.group_0.weights.offset: 3 is unknown",
    ),
    "another format": (
        spoiled(),
        config("marlin-24", PACKED),
        "format: 'marlin-24' is not read; what is: pack-quantized, int-quantized",
    ),
    "not compressed": (
        spoiled(),
        config("pack-quantized", PACKED, quantization_status="calibration"),
        "quantization_status: 'calibration' is not read; what is: compressed",
    ),
    "sparse": (
        spoiled(),
        config("pack-quantized", PACKED, sparsity_config={"format": "sparse-bitmask"}),
        "sparsity_config: sparse weights are not read",
    ),
    "bits": (
        spoiled(),
        config("pack-quantized", PACKED | {"num_bits": 9}),
        "num_bits: 9 is not read",
    ),
    "bits that are no number": (
        spoiled(),
        config("pack-quantized", PACKED | {"num_bits": [4]}),
        "num_bits: [4] is not read",
    ),
    "a group size that is none": (
        spoiled(),
        config("pack-quantized", PACKED | {"group_size": "32"}),
        "group_size: '32' is no number of columns",
    ),
    "a pattern that is none": (
        spoiled(),
        config("pack-quantized", PACKED, ignore=["re:("]),
        "ignore: 're:(' is no regular expression",
    ),
    "groups that are a list": (
        spoiled(),
        config("pack-quantized", PACKED, config_groups=[PACKED]),
        "config_groups: is no mapping of groups",
    ),
    "a preset": (
        spoiled(),
        config("pack-quantized", PACKED, config_groups={"W4A16": ["Linear"]}),
        "config_groups.W4A16: ['Linear'] is no mapping of settings",
    ),
    "NVFP4 in other groups": (
        spoiled(),
        config("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "group_size": 32}),
        "group_size: 32 does not go with nvfp4-pack-quantized, which has 16",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_line(tmp_path: Path, fault: str) -> None:
    tensors, quantization, says = FAULTS[fault]
    assert says in refusals(write(tmp_path, tensors, quantization))


def test_what_no_header_tells_is_refused_when_it_is_read(tmp_path: Path) -> None:
    shape = spoiled(weight_shape=torch.tensor([ROWS, 191]))
    read = plain(write(tmp_path / "shape", shape, config("pack-quantized", PACKED)))
    with pytest.raises(InvalidInputError, match=r"^m.up.weight_shape: says \[72, 191\], but the"):
        read.read("m.up.weight")
    for index in (torch.full((COLUMNS,), 7), torch.zeros(COLUMNS)):
        tensors = spoiled(weight_g_idx=index.to(torch.int32))
        ordered = config("pack-quantized", PACKED | {"actorder": "group"})
        read = plain(write(tmp_path / str(int(index[0])), tensors, ordered))
        with pytest.raises(InvalidInputError, match=r"^m.up.weight_g_idx: does not give each of 6"):
            read.read("m.up.weight")
