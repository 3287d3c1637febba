"""What the inputs of linears become where a scheme rounds them, as vLLM's kernels do it."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.numbers.grid import grid_of
from quantlib.numbers.quantized import group_count
from quantlib.numbers.scaling import nearest_scales
from quantlib.schemes import Activations, WeightScheme

_SCHEMES: dict[Activations, WeightScheme] = {
    "int8": WeightScheme(bits=8, group_size=-1),
    "int8-static": WeightScheme(bits=8, group_size=-1),
    "fp8": WeightScheme(type="float", bits=8, group_size=-1),
    "fp8-group": WeightScheme(type="float", bits=8, group_size=128),
    "mxfp4": WeightScheme(type="float", bits=4, group_size=32, scale="e8m0"),
    "mxfp8": WeightScheme(type="float", bits=8, group_size=32, scale="e8m0"),
}
"""How a token is represented: as the row of a weight."""


def round_input(x: Tensor, activations: Activations, step: Tensor | None = None) -> Tensor:
    """An input of a linear as vLLM rounds it.

    Args:
        x: ``[..., in_features]``.
        activations: What it is rounded to.
        step: The scale of all tokens, float32 ``[1]``; None for one per token, or per token and
            group of channels, which maps the largest magnitude to the grid's, 127 for int8.

    Returns:
        The values that the codes stand for, in the dtype of ``x``.
    """
    scheme = _SCHEMES[activations]
    grid = grid_of(scheme)
    groups = x.float().unflatten(-1, (group_count(x.shape[-1], scheme.group_size), -1))
    if step is None:
        largest = groups.abs().amax(-1, keepdim=True)
        if scheme.scale == "e8m0":
            step = nearest_scales(largest, scheme, grid, torch.float32, None)
        else:
            top = 127.0 if scheme.type == "int" else grid.steps
            step = largest.clamp_min(1e-12) / top
    values = groups / step
    grid.nearest(values, torch.zeros((), device=x.device), out=values)
    return (values * step).flatten(-2).to(x.dtype)
