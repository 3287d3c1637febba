"""What keys, values and queries become where attention keeps or takes them in FP8."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.numbers.grid import grid_of
from quantlib.schemes import CacheScheme, WeightScheme

_GRID = grid_of(WeightScheme(type="float", bits=8, group_size=-1))


@dataclass(frozen=True)
class CacheScales:
    """What a module of attention divides by before it rounds to FP8 E4M3.

    Each is float32, ``[1]``, or ``[heads, 1, 1]`` where every head has its own.

    Attributes:
        keys: Of the keys, after rotary embedding.
        values: Of the values.
        queries: Of the queries; None where they are not rounded.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor | None = None

    @classmethod
    def of(cls, scheme: CacheScheme, keys: Tensor, values: Tensor, queries: Tensor) -> CacheScales:
        """The scales by which the largest magnitudes become the largest FP8 number.

        Args:
            scheme: What has a scale of its own.
            keys: The largest magnitudes, float32 ``[heads, width]``.
            values: The same of the values.
            queries: The same of the queries.
        """
        return cls(
            _scale(keys, scheme),
            _scale(values, scheme),
            _scale(queries, scheme) if scheme.queries else None,
        )

    def round(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What attention in FP8 is computed with, ``[samples, heads, tokens, width]`` each."""
        if self.queries is not None:
            query = round_cached(query, self.queries)
        return query, round_cached(key, self.keys), round_cached(value, self.values)


def _scale(largest: Tensor, scheme: CacheScheme) -> Tensor:
    found = largest.amax(-1)[:, None, None] if scheme.per_head else largest.max().reshape(1)
    # What was nothing but zeros in calibration need not be so when it is served.
    return torch.where(found > 0, found, _GRID.steps) / _GRID.steps


def round_cached(x: Tensor, scale: Tensor) -> Tensor:
    """The FP8 numbers nearest to ``x / scale``, times the scale, in the dtype of ``x``.

    Args:
        x: ``[..., heads, tokens, width]``.
        scale: float32 ``[1]`` or ``[heads, 1, 1]``.
    """
    scale = scale.to(x.device)
    values = x.float() / scale
    return (_GRID.nearest(values, scale.new_zeros(()), out=values) * scale).to(x.dtype)
