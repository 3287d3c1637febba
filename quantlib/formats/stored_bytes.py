"""What the tensors of a quantized linear take. Imports no torch: plans and searches go by it."""

from __future__ import annotations

from quantlib.schemes import WeightScheme


def stored_bytes(weights: WeightScheme, rows: int, columns: int) -> int:
    """Bytes of a linear's codes, scales and zero points.

    Args:
        weights: How its weight is represented.
        rows: Output channels.
        columns: Input channels.
    """
    size = weights.group_size if weights.group_size > 0 else columns
    blocks = weights.scale_rows(rows) * -(-columns // size)
    codes = -(-rows * columns * weights.bits // 8)
    zero_points = 0 if weights.symmetric else -(-blocks * weights.bits // 8)
    return codes + blocks * (2 if weights.scale == "model" else 1) + zero_points
