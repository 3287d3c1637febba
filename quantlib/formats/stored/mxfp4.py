"""MXFP4 as gpt_oss has its experts: FP4 numbers in blocks of 32 that share a power of two.

| tensor | dtype | shape | content |
|---|---|---|---|
| `<name>_blocks` | uint8 | `[experts, columns, rows / 32, 16]` | two codes a byte, lower first |
| `<name>_scales` | uint8 | `[experts, columns, rows / 32]` | exponents of 2, plus 127 |

The weight is `<name>` `[experts, rows, columns]`: it is stored transposed, as transformers'
``convert_moe_packed_tensors`` (integrations/mxfp4.py) has it, which is the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FileSource
from quantlib.formats.stored.faults import Faults, Settings, is_named, part_problem
from quantlib.formats.stored.found import Found
from quantlib.formats.stored.weights import StoredWeight, read_rows
from quantlib.schemes import WeightScheme

if TYPE_CHECKING:
    from torch import Tensor

_PAIRS = 16
_KNOWN = ("dequantize", "modules_to_not_convert", "quant_method")


@dataclass(frozen=True)
class Mxfp4Weight(StoredWeight):
    """The matrices of experts, each stored transposed in blocks. Parts: ``blocks``, ``scales``."""

    def pieces(self, source: FileSource, first: int, last: int) -> Iterator[Tensor]:
        """The rows from ``first`` to before ``last``; a row is a column of what is stored."""
        import torch

        from quantlib.formats.packing import unpack_e2m1
        from quantlib.formats.stored.fp8 import multipliers
        from quantlib.numbers.quantized import QuantizedLinear

        _, rows, columns = self.shape
        scheme = WeightScheme(type="float", bits=4, group_size=2 * _PAIRS)
        for expert in range(first // rows, -(-last // rows)):
            start, stop = max(first, expert * rows), min(last, (expert + 1) * rows)
            groups = rows // scheme.group_size
            blocks = read_rows(
                source,
                self.parts["blocks"],
                expert * columns * groups,
                (expert + 1) * columns * groups,
            ).reshape(columns, groups, _PAIRS)
            scales = read_rows(
                source, self.parts["scales"], expert * columns, (expert + 1) * columns
            )
            for begin, end in self.steps(start - expert * rows, stop - expert * rows):
                # Whole blocks that hold these rows, of all columns.
                group, beyond = begin // scheme.group_size, -(-end // scheme.group_size)
                linear = QuantizedLinear(
                    unpack_e2m1(blocks[:, group:beyond].flatten(1)),
                    multipliers(self.parts["scales"], scales[:, group:beyond]),
                    None,
                    scheme,
                )
                at = group * scheme.group_size
                piece = self.finished(linear, torch.bfloat16).t()
                yield piece[begin - at : end - at]


def read_mxfp4(
    checkpoint: Checkpoint, given: Mapping[str, Any], dtype: str, faults: Faults
) -> Found:
    """Finds experts in MXFP4."""
    settings = Settings(given, faults)
    settings.refuse_unknown(_KNOWN)
    plain = settings.names("modules_to_not_convert")
    found, tensors = Found(words="MXFP4"), checkpoint.tensors
    if faults:
        return found
    for name, info in tensors.items():
        if name.endswith("_scales") and f"{name.removesuffix('_scales')}_blocks" not in tensors:
            faults.tensor("no blocks", name, "are scales, but there are no blocks beside them")
        weight = name.removesuffix("_blocks")
        if weight == name:
            continue
        scales = tensors.get(f"{weight}_scales")
        if scales is None:
            faults.tensor("no scales", name, f"are blocks, but there is no {weight}_scales")
        elif weight in tensors:
            faults.tensor("twice", weight, f"is there, and so is {name}, which stands for it")
        elif is_named(weight, plain):
            what = "are blocks, but the config names them among the modules that are not converted"
            faults.tensor("not converted", name, what)
        elif len(info.shape) != 4 or info.shape[-1] != _PAIRS or info.elements == 0:
            what = f"has shape {list(info.shape)}, not [experts, columns, blocks, {_PAIRS}]"
            faults.tensor("shape", name, what)
        elif not part_problem(faults, info, ("U8",), info.shape, "it is") and not part_problem(
            faults, scales, ("U8",), info.shape[:-1], f"{name} asks for"
        ):
            experts, columns, groups, pairs = info.shape
            shape = (experts, groups * pairs * 2, columns)
            found.add(Mxfp4Weight(weight, shape, dtype, {"blocks": info, "scales": scales}))
    found.cpu_problem = "it has no kernel for MXFP4 there"
    return found
