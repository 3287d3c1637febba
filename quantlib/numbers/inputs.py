"""What the inputs of linears become where a scheme rounds them, as vLLM's kernels do it."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.numbers.grid import grid_of
from quantlib.numbers.quantized import group_count
from quantlib.numbers.scaling import nearest_scales, overall_scale
from quantlib.schemes import ACTIVATIONS, EXACT_INPUTS, Activations, WeightScheme, is_static


def _row(activations: Activations) -> WeightScheme:
    """How a token is represented: as the row of a weight."""
    return WeightScheme.model_validate(ACTIVATIONS[activations].row)


def input_scale(largest: float, activations: Activations) -> Tensor:
    """The number by which all inputs of a linear are rounded, as it is stored.

    Args:
        largest: The largest magnitude of its inputs.
        activations: What they are rounded to: some with a static scale.

    Returns:
        float32 ``[1]``: the step of int8 and FP8; what the scales of groups of NVFP4 are divided
        by, of which the largest then is the largest FP8 number.
    """
    scheme = _row(activations)
    # An input of zeros would make the scale one that nothing can be divided by.
    values = torch.full((1, 1, 1), max(largest, 1e-12))
    overall = overall_scale(values, scheme, grid_of(scheme))
    return values.flatten() / _top(scheme) if overall is None else overall.flatten()


def _top(scheme: WeightScheme) -> float:
    """The value that the largest magnitude becomes."""
    return 127.0 if scheme.type == "int" else grid_of(scheme).steps


def round_input(x: Tensor, activations: Activations, step: Tensor | None = None) -> Tensor:
    """An input of a linear as vLLM rounds it.

    Args:
        x: ``[..., in_features]``.
        activations: What it is rounded to.
        step: Of :func:`input_scale`; None for a scale per token, or per token and group of
            channels, which maps the largest magnitude to the grid's, 127 for int8.

    Returns:
        The values that the codes stand for, in the dtype of ``x``.
    """
    scheme = _row(activations)
    grid = grid_of(scheme)
    groups = x.float().unflatten(-1, (group_count(x.shape[-1], scheme.group_size), -1))
    if step is None or scheme.scale == "e4m3":
        largest = groups.abs().amax(-1, keepdim=True)
        if scheme.scale == "model":
            step = largest.clamp_min(1e-12) / _top(scheme)
        else:
            step = nearest_scales(largest, scheme, grid, torch.float32, step)
    values = groups / step
    grid.nearest(values, torch.zeros((), device=x.device), out=values)
    return (values * step).flatten(-2).to(x.dtype)


def round_as_calibrated(x: Tensor, activations: Activations, largest: float) -> Tensor:
    """An input as vLLM rounds it where calibration found a largest magnitude.

    Args:
        x: ``[..., in_features]``.
        activations: What it is rounded to.
        largest: That magnitude; it matters where a number of the linear is kept.
    """
    if activations == EXACT_INPUTS:
        return x
    if not is_static(activations):
        return round_input(x, activations)
    return round_input(x, activations, input_scale(largest, activations).to(x.device))
