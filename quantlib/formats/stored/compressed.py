"""Checkpoints of compressed-tensors: each module as the group of the config says that it is for.

The tensors of the integer formats and of FP8 are listed in
:mod:`quantlib.formats.compressed_tensors`, which parses them; of FP4 and MXFP8 they are:

| format | tensor | dtype | shape |
|---|---|---|---|
| nvfp4, mxfp4 | `weight_packed` | uint8 | `[out_features, in_features / 2]`, the lower half first |
| nvfp4 | `weight_scale` | float8_e4m3fn | `[out_features, in_features / 16]` |
| nvfp4 | `weight_global_scale` | float32 | `[1]`: scales are divided by it |
| mxfp4, mxfp8 | `weight_scale` | uint8 | `[out_features, in_features / 32]`, exponents plus 127 |
| mxfp8 | `weight` | float8_e4m3fn | `[out_features, in_features]` |

The reference is the package's own ``decompress``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.formats.stored.compressed_weights import Fp4Weight, IntegerWeight
from quantlib.formats.stored.faults import Faults, part_problem
from quantlib.formats.stored.found import FLOATS, Found, by_module, joined
from quantlib.formats.stored.fp8 import Fp8Weight
from quantlib.formats.stored.schemes import FP4, INTEGER_PACKED, MXFP8, GroupScheme, Schemes
from quantlib.formats.stored.weights import StoredWeight
from quantlib.schemes import WeightScheme

_PARTS = (
    "weight_packed",
    "weight",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
)
_CODES = ("I8", "F8_E4M3")

Parts = Mapping[str, TensorInfo]


def read_compressed(
    checkpoint: Checkpoint, given: Mapping[str, Any], dtype: str, faults: Faults
) -> Found:
    """Finds the modules that compressed-tensors compressed."""
    schemes = Schemes(given, faults)
    found, words, problems = Found(), [], []
    if faults:
        return found
    for module, parts in by_module(checkpoint.tensors, _PARTS).items():
        weight = parts.get("weight")
        if len(parts) == 1 and weight is not None and weight.dtype not in _CODES:
            continue
        scheme = schemes.scheme(module)
        first = next(parts[part] for part in _PARTS if part in parts)
        if schemes.is_ignored(module):
            what = "is quantized, but the config names it among those to ignore"
            faults.tensor("ignored", first.name, what)
        elif scheme is None:
            what = "is quantized, but no group of the config says how"
            faults.tensor("no group", first.name, what)
        elif stored := _stored(module, parts, scheme, dtype, faults):
            found.add(stored)
            # A symmetric scheme has no use for zero points, and is told the shape.
            found.used.update(part.name for name, part in parts.items() if name != "weight")
            words.append(scheme.words)
            problems.append(scheme.cpu_problem)
    found.drop_activations(checkpoint.tensors)
    found.words = f"compressed-tensors {joined(words)}"
    found.cpu_problem = next((problem for problem in problems if problem), None)
    return found


def _stored(
    module: str, parts: Parts, scheme: GroupScheme, dtype: str, faults: Faults
) -> StoredWeight | None:
    """The weight that a module's parts are; None where they do not fit, which is noted."""
    packed = scheme.layout == INTEGER_PACKED or scheme.layout in FP4
    needed = ["weight_packed" if packed else "weight", "weight_scale"]
    if not scheme.symmetric and scheme.type == "int":
        needed.append("weight_zero_point")
    if scheme.ordered:
        needed.append("weight_g_idx")
    if scheme.layout == "nvfp4-pack-quantized":
        needed.append("weight_global_scale")
    if missing := [part for part in needed if part not in parts]:
        what = f"holds {', '.join(sorted(parts))}, but no {' and no '.join(missing)}"
        faults.tensor("missing", module, f"{what}, which {scheme.layout} needs")
        return None
    codes = parts[needed[0]]
    if packed and "weight" in parts:
        faults.tensor("twice", parts["weight"].name, f"is there, and so is {codes.name}")
    elif len(codes.shape) != 2 or codes.elements == 0:
        faults.tensor("codes", codes.name, f"has shape {list(codes.shape)}: no matrix")
    elif scheme.layout in FP4:
        return _fp4(module, parts, scheme, dtype, faults)
    elif scheme.type == "float":
        return _float(module, parts, scheme, dtype, faults)
    else:
        return _integer(module, parts, scheme, dtype, faults)
    return None


def _grid(scheme: GroupScheme, shape: tuple[int, int]) -> tuple[int, int] | None:
    """The shape of the scales of a matrix; None where its columns fill no groups."""
    rows, columns = shape
    if scheme.block is not None:
        return -(-rows // scheme.block[0]), -(-columns // scheme.block[1])
    if scheme.group_size is not None:
        return None if columns % scheme.group_size else (rows, columns // scheme.group_size)
    return (1, 1) if scheme.strategy == "tensor" else (rows, 1)


def _scales_misfit(
    parts: Parts,
    scheme: GroupScheme,
    shape: tuple[int, int],
    faults: Faults,
    dtypes: tuple[str, ...] = FLOATS,
) -> bool:
    codes = next(parts[name] for name in _PARTS if name in parts)
    grid = _grid(scheme, shape)
    if grid is None:
        what = f"has {shape[1]} inputs, which groups of {scheme.group_size} do not divide"
        faults.tensor("groups", codes.name, what)
        return True
    scales = parts["weight_scale"]
    if scheme.strategy == "tensor" and scales.elements == 1 and scales.dtype in dtypes:
        return False
    why = f"{codes.name} {list(codes.shape)} and the config ask for"
    return part_problem(faults, scales, dtypes, grid, why)


def _fp4(
    module: str, parts: Parts, scheme: GroupScheme, dtype: str, faults: Faults
) -> StoredWeight | None:
    codes = parts["weight_packed"]
    shape = codes.shape[0], 2 * codes.shape[1]
    nvidias = scheme.layout == "nvfp4-pack-quantized"
    dtypes = ("F8_E4M3", *FLOATS) if nvidias else ("U8",)
    wrong = [part_problem(faults, codes, ("U8",), codes.shape, "it is")]
    wrong.append(_scales_misfit(parts, scheme, shape, faults, dtypes))
    used = {"codes": codes, "scales": parts["weight_scale"]}
    if nvidias:
        used["whole"] = overall = parts["weight_global_scale"]
        wrong.append(overall.dtype != "F32" or overall.elements != 1)
        if wrong[-1]:
            what = f"is {overall.dtype} {list(overall.shape)}, not F32 [1]"
            faults.tensor("global scale", overall.name, what)
    return None if any(wrong) else Fp4Weight(f"{module}.weight", shape, dtype, used)


def _float(
    module: str, parts: Parts, scheme: GroupScheme, dtype: str, faults: Faults
) -> StoredWeight | None:
    codes, scales = parts["weight"], parts["weight_scale"]
    rows, columns = codes.shape
    powers = scheme.layout == MXFP8
    wrong = [part_problem(faults, codes, ("F8_E4M3",), codes.shape, "it is")]
    shape = (rows, columns)
    wrong.append(_scales_misfit(parts, scheme, shape, faults, ("U8",) if powers else FLOATS))
    if any(wrong):
        return None
    block = {"tensor": (rows, columns), "channel": (1, columns)}.get(scheme.strategy)
    if block is None:
        block = scheme.block or (1, scheme.group_size or columns)
    used = {"codes": codes, "scales": scales}
    library = "BF16" if powers else scales.dtype
    return Fp8Weight(f"{module}.weight", shape, dtype, used, block, library)


def _integer(
    module: str, parts: Parts, scheme: GroupScheme, dtype: str, faults: Faults
) -> StoredWeight | None:
    packed, per_word = scheme.layout == INTEGER_PACKED, 32 // scheme.bits
    codes = parts["weight_packed" if packed else "weight"]
    scales, zeros = parts["weight_scale"], parts.get("weight_zero_point")
    rows, columns = codes.shape
    if packed and scheme.group_size is not None and len(scales.shape) == 2:
        columns = scales.shape[1] * scheme.group_size
    elif packed:
        columns *= per_word
    shape = (rows, columns)
    wrong = [part_problem(faults, codes, ("I32",) if packed else ("I8",), codes.shape, "it is")]
    wrong.append(_scales_misfit(parts, scheme, shape, faults))
    if packed and -(-columns // per_word) != codes.shape[1]:
        what = f"has {codes.shape[1]} words in a row, which {columns} inputs do not fill"
        faults.tensor("words", codes.name, what)
        wrong.append(True)
    why = f"{codes.name} {list(codes.shape)} and the config ask for"
    used = {"codes": codes, "scales": scales}
    if not scheme.symmetric and zeros is not None:
        used["zeros"] = zeros
        grid = _grid(scheme, shape) or (rows, 1)
        # Zero points of whole tensors are not packed.
        if packed and scheme.strategy != "tensor":
            grid = -(-rows // per_word), grid[1]
            wrong.append(part_problem(faults, zeros, ("I32",), grid, why))
        else:
            one = scheme.strategy == "tensor" and zeros.elements == 1
            wrong.append(part_problem(faults, zeros, ("I8",), zeros.shape if one else grid, why))
    if "weight_shape" in parts:
        used["shape"] = parts["weight_shape"]
        wrong.append(part_problem(faults, used["shape"], ("I64", "I32"), (2,), "it holds a shape"))
    if "weight_g_idx" in parts and scheme.group_size is not None:
        used["index"] = parts["weight_g_idx"]
        wrong.append(part_problem(faults, used["index"], ("I32", "I64"), (columns,), why))
    if any(wrong):
        return None
    size = scheme.group_size or -1
    weights = WeightScheme(bits=scheme.bits, group_size=size, symmetric=scheme.symmetric)
    return IntegerWeight(f"{module}.weight", shape, dtype, used, weights, scheme.block, packed)
