"""How much is quantized at once. Imports no torch: plans go by it too."""

from __future__ import annotations

from collections.abc import Iterable

HESSIAN_COPIES = 8
"""Matrices of the Hessian's size that quantizing a linear holds at once."""

WEIGHT_COPIES = 5
"""The same of the weight's size in float32."""

PIECE_ELEMENTS = 1 << 26
"""Weights that are quantized at once of a matrix with many rows: 256 MiB of float32."""

_MOST_BYTES = {"cpu": 64 << 20}
_MOST_BYTES_ACCELERATOR = 4 << 30


def held_bytes(rows: int, columns: int) -> int:
    """What quantizing linears that share an input holds at its peak.

    Args:
        rows: Output channels.
        columns: Input channels.
    """
    return 4 * (HESSIAN_COPIES * columns**2 + WEIGHT_COPIES * rows * columns)


def held_in_pieces(rows: int, columns: int) -> int:
    """What quantizing a matrix with many rows holds at its peak, some rows at a time.

    Its codes are there twice at the end: in pieces, and as one.

    Args:
        rows: Output channels.
        columns: Input channels.
    """
    return held_bytes(min(rows, PIECE_ELEMENTS // columns), columns) + 2 * rows * columns


def experts_at_once(shapes: Iterable[tuple[int, int]], device: str) -> int:
    """How many experts of a mixture are quantized together, at least one.

    It follows from the model and the kind of device alone, so that every run cuts alike.

    Args:
        shapes: ``(out_features, in_features)`` of each shared input of an expert, the output
            channels of its linears together.
        device: Its kind, as torch calls it.
    """
    largest = max((held_bytes(rows, columns) for rows, columns in shapes), default=0)
    most = _MOST_BYTES.get(device, _MOST_BYTES_ACCELERATOR)
    return max(1, most // largest) if largest else 1
