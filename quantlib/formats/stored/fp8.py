"""FP8 as transformers' and vLLM's ``fp8`` methods read it: DeepSeek's blocks, and coarser scales.

| tensor | dtype | shape | content |
|---|---|---|---|
| `weight` | float8_e4m3fn | `[..., out_features, in_features]` | codes |
| `weight_scale_inv` | float32, bfloat16 or E8M0 | `[..., out blocks, in blocks]` | factors |
| `weight_scale` | the same | `[]`, `[1]` or `[out_features, 1]` | factors, more coarsely |

Where the last block of a row or column is not whole, it has a scale of its own all the same, as in
DeepSeek's ``weight_dequant`` (inference/kernel.py of DeepSeek-V3): transformers' ``Fp8Dequantize``
is the reference for whole blocks, and takes others for smaller ones or refuses them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import REFETCH, TensorInfo
from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError
from quantlib.formats.stored.faults import Faults, Settings, is_named, shown
from quantlib.formats.stored.found import FLOATS, Found, joined
from quantlib.formats.stored.weights import StoredWeight, read_rows, read_whole
from quantlib.schemes import WeightScheme

if TYPE_CHECKING:
    from torch import Tensor

_CODES = "F8_E4M3"
_SCALES = (*FLOATS, "F8_E8M0", "U8")
_KNOWN = (
    "activation_scheme",
    "dequantize",
    "fmt",
    "ignored_layers",
    "kv_cache_scheme",
    "modules_to_convert",
    "modules_to_not_convert",
    "quant_method",
    "scale_fmt",
    "weight_block_size",
)
_NAN = 255
_USUAL_BLOCK = (128, 128)


@dataclass(frozen=True)
class Fp8Weight(StoredWeight):
    """Codes of FP8 and a scale for each block of rows and columns.

    Parts: ``codes`` and ``scales``.

    Attributes:
        block: Rows and columns that share a scale.
        library: The dtype that products are rounded to before the weight's; None for none.
    """

    block: tuple[int, int]
    library: str | None = None

    def pieces(self, source: FileSource, first: int, last: int) -> Iterator[Tensor]:
        """The rows from ``first`` to before ``last``."""
        import torch

        from quantlib.checkpoint.tensors import TORCH_DTYPES
        from quantlib.numbers.quantized import QuantizedLinear

        rows = self.shape[-2]
        high, wide = min(self.block[0], rows), min(self.block[1], self.columns)
        rounded = None if self.library is None else TORCH_DTYPES[self.library]
        scheme = WeightScheme(type="float", bits=8, group_size=-1)
        group_index = torch.arange(self.columns) // wide
        scales = multipliers(self.parts["scales"], read_whole(source, self.parts["scales"]))
        scales = scales.reshape(-1, -(-self.columns // wide))
        for start, stop in self.steps(first, last):
            codes = read_rows(source, self.parts["codes"], start, stop)
            row = torch.arange(start, stop)
            scale_row = row // rows * -(-rows // high) + row % rows // high
            linear = QuantizedLinear(
                codes, scales[scale_row], None, scheme, group_index=group_index
            )
            yield self.finished(linear, rounded)


def multipliers(info: TensorInfo, scales: Tensor) -> Tensor:
    """Scales as float32; bytes are exponents of 2, to which 127 was added (E8M0).

    Args:
        info: The tensor that they are of.
        scales: Some or all of it, as it is stored.

    Raises:
        InvalidInputError: An exponent is 255, which stands for no number.
    """
    import torch

    powers = scales.dtype in (torch.uint8, torch.float8_e8m0fnu)
    if powers and bool((scales.view(torch.uint8) == _NAN).any()):
        raise InvalidInputError.one(info.name, "holds NaN (the exponent 255)", REFETCH)
    if scales.dtype == torch.uint8:
        return (scales.float() - 127).exp2()
    return scales.float()


def read_fp8(checkpoint: Checkpoint, given: Mapping[str, Any], dtype: str, faults: Faults) -> Found:
    """Finds the weights in FP8."""
    settings = Settings(given, faults)
    settings.refuse_unknown(_KNOWN)
    settings.choice("fmt", (None, "e4m3", "float8_e4m3fn", "float8_e4m3"))
    settings.choice("scale_fmt", (None, "float", "ue8m0"))
    settings.choice("activation_scheme", ("dynamic", "static"), "dynamic")
    plain = settings.names("modules_to_not_convert", "ignored_layers")
    block = _block(settings)
    found, kinds = Found(), []
    if faults:
        return found
    tensors = checkpoint.tensors
    scales = _scales_of(tensors, faults)
    for name, info in tensors.items():
        if info.dtype != _CODES:
            if name in scales:
                what = f"has dtype {info.dtype}, not {_CODES}, though there is {scales[name].name}"
                faults.tensor("no codes", name, what)
        elif name not in scales:
            faults.tensor("no scale", name, f"is in FP8, but there is no {name}_scale_inv")
        elif is_named(name.rpartition(".")[0], plain):
            what = "is in FP8, but the config names it among the modules that are not"
            faults.tensor("not converted", name, what)
        elif sized := _sized(info, scales[name], block, faults):
            kind, size = sized
            kinds.append(kind)
            parts = {"codes": info, "scales": scales[name]}
            found.add(Fp8Weight(name, info.shape, dtype, parts, size))
    found.drop_activations(tensors)
    found.words = "FP8 " + joined(sorted(kinds))
    if any("block" in kind for kind in kinds):
        found.cpu_problem = "its kernel for FP8 in blocks needs AMX instructions"
    elif kinds:
        found.cpu_problem = "it was not seen to serve FP8 checkpoints of this kind there"
    return found


def _block(settings: Settings) -> tuple[int, int] | None:
    """Rows and columns of a block; None where scales are coarser, or the config does not say."""
    match settings.given.get("weight_block_size"):
        case None:
            return None
        case [int(high), int(wide)] if high > 0 and wide > 0:
            return high, wide
        case other:
            settings.fault("weight_block_size", f"{shown(other)} is no two positive numbers")
            return None


def _scales_of(tensors: Mapping[str, TensorInfo], faults: Faults) -> dict[str, TensorInfo]:
    """The scales, by the name of the weight that they belong to."""
    scales: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        weight = name.removesuffix("_scale_inv")
        if weight == name and name.rpartition(".")[2] == "weight_scale":
            weight = name.removesuffix("_scale")
        if weight == name:
            continue
        if weight not in tensors:
            faults.tensor("no weight", name, f"is a scale, but there is no {weight}")
        elif weight in scales:
            what = f"is a scale of {weight}, which has {scales[weight].name} too"
            faults.tensor("two scales", name, what)
        else:
            scales[weight] = info
    return scales


def _sized(
    codes: TensorInfo, scales: TensorInfo, block: tuple[int, int] | None, faults: Faults
) -> tuple[str, tuple[int, int]] | None:
    """In words and in numbers, what shares a scale; None where the tensors do not fit."""
    if len(codes.shape) < 2 or codes.elements == 0:
        faults.tensor("codes", codes.name, f"has shape {list(codes.shape)}: no matrix")
        return None
    if scales.dtype not in _SCALES:
        what = f"has dtype {scales.dtype}, not {' or '.join(_SCALES)}"
        faults.tensor("scale dtype", scales.name, what)
        return None
    *before, rows, columns = codes.shape
    named = block or (_USUAL_BLOCK if scales.name.endswith("_scale_inv") else None)
    coarse = {(): "per tensor", (1,): "per tensor", (1, 1): "per tensor", (rows, 1): "per channel"}
    if not before and block is None and scales.shape in coarse:
        kind = coarse[scales.shape]
        return kind, (1, columns) if kind == "per channel" else (rows, columns)
    if before and block is None and scales.shape in (tuple(before), (*before, 1, 1)):
        return "per tensor", (rows, columns)
    if named is None:
        expected = "[] (per tensor) or [out_features, 1] (per channel)"
    else:
        grid = (*before, -(-rows // named[0]), -(-columns // named[1]))
        if scales.shape == grid:
            return f"block {named[0]}x{named[1]}", named
        expected = f"{list(grid)}, blocks of {named[0]}x{named[1]}"
    what = f"has shape {list(scales.shape)}; of {codes.name} {list(codes.shape)} it has to be "
    faults.tensor("scale shape", scales.name, what + expected)
    return None
