"""Whether the weights of a checkpoint are those of its original, linear by linear.

One linear of hundreds that holds something else, by a wrong name, a wrong part of a fused matrix or
a damaged file, moves the means of a large model by less than methods differ. A few rows of each
linear tell: rounding leaves them what they are, up to the scales that are folded into columns
(SmoothQuant, AWQ) and rows (what was folded into the next linear's input).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.formats.stored import plain, stored

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 32
"""That are looked at of each linear."""

LEAST_EXPLAINED = 0.25
"""Share of a linear's energy that the original's weights have to explain. GPTQ to 4 bits leaves
more than 0.9; of shuffled weights one part in :data:`ROWS` is explained by chance."""

_MOST_LINEARS = 4096
_SHOWN = 3
_PASSES = 3


def weight_findings(original: Checkpoint, published: Checkpoint, *, rotated: bool) -> list[str]:
    """Linears whose weights are not the original's, a sentence for all of them.

    Args:
        original: As it is walked, dequantized.
        published: As it is stored, quantized.
        rotated: Whether the weights may be those of a model that was turned (SpinQuant, QuaRot), of
            which no linear is like the original's: a checkpoint that was made elsewhere. Nothing is
            said then where most linears are unlike.
    """
    found = stored(published)
    if found is None:
        return []
    opened = plain(published)
    names = [
        weight.name
        for weight in found.weights
        if len(weight.shape) == 2
        and weight.name in original.tensors
        and tuple(original.info(weight.name).shape) == tuple(weight.shape)
    ]
    names = names[:: -(-len(names) // _MOST_LINEARS) or 1]
    unlike = [name for name in names if _share(original, opened, name) < LEAST_EXPLAINED]
    if not unlike or (rotated and 2 * len(unlike) > len(names)):
        return []
    more = f" and {len(unlike) - _SHOWN} more" if len(unlike) > _SHOWN else ""
    verb = "holds" if len(unlike) == 1 else "hold"
    return [f"{', '.join(unlike[:_SHOWN])}{more} {verb} other weights than the original's"]


def _share(original: Checkpoint, opened: Checkpoint, name: str) -> float:
    from quantlib.checkpoint.tensors import read_rows

    rows = original.info(name).shape[0]
    start = rows // 2 // ROWS * ROWS
    stop = min(rows, start + ROWS)
    before, now = (read_rows(each, name, start, stop).float() for each in (original, opened))
    return explained(before, now)


def explained(original: Tensor, quantized: Tensor) -> float:
    """Share of the energy of some rows that the original's explain, scaled by rows and columns.

    Args:
        original: ``[rows, columns]``.
        quantized: The same rows, dequantized.
    """
    import torch

    if not original.any():
        return 1.0  # a row of padding has nothing to be like
    energy = quantized.double().square().sum()
    if not energy > 0:
        return 0.0
    w, q = original.double(), quantized.double()
    scaled = w
    for _ in range(_PASSES):
        for axis in (0, 1):
            scales = (q * scaled).sum(axis, keepdim=True) / scaled.square().sum(
                axis, keepdim=True
            ).clamp_min(torch.finfo(torch.float64).tiny)
            scaled = scaled * scales
    return float(1 - (q - scaled).square().sum() / energy)
