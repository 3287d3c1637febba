"""How much a block's output changes when a part of it is rounded: what a search goes by.

The error of a part is the mean over tokens of the change's energy over the energy of what the block
gives, both ``[hidden_size]``. Blocks add to what comes in, so that this compares with the residual
stream, which is what the blocks behind read; docs/search.md has how well it predicts the KL
divergence beside other measures. Rounding is to nearest: it costs little, and errors of other
methods lie below it about alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from quantlib.models.streamed import Block, BlockWalk
from quantlib.numbers.inputs import round_as_calibrated
from quantlib.quantizers.rounding import nearest_within_range
from quantlib.schemes import Activations, LinearScheme
from quantlib.search.candidates import Unit

_Rounding = Callable[[torch.nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]

PROBE_TOKENS = 512
"""Calibration tokens that parts are tried on."""


def block_errors(
    walk: BlockWalk,
    block: Block,
    units: Sequence[Unit],
    schemes: Mapping[str, LinearScheme | None],
    stored: torch.dtype,
) -> dict[str, dict[str, float]]:
    """Tries every part of a block in every scheme that it can have.

    Args:
        walk: The tokens, which stand before the block.
        block: The block; its weights are what they were when this is done.
        units: Its parts.
        schemes: By the names of candidates.
        stored: The dtype in which scales are stored.

    Returns:
        The error by part and candidate; 0 for what stays exact.
    """
    with walk.experts_held(block):
        clean = [output.float() for output in walk.tried(block)]
        energies = [output.square().sum(-1).clamp_min(1e-30) for output in clean]
        found: dict[str, dict[str, float]] = {}
        for unit in units:
            errors = found[unit.name] = {}
            for name in unit.bytes:
                scheme = schemes[name]
                if scheme is None:
                    errors[name] = 0.0
                    continue
                with _rounded(walk, block, unit.linears, scheme, stored):
                    changed = walk.tried(block)
                shares = [
                    ((output.float() - before).square().sum(-1) / energy).flatten()
                    for output, before, energy in zip(changed, clean, energies, strict=True)
                ]
                errors[name] = float(torch.cat(shares).mean())
    return found


@contextmanager
def _rounded(
    walk: BlockWalk,
    block: Block,
    linears: Sequence[str],
    scheme: LinearScheme,
    stored: torch.dtype,
) -> Iterator[None]:
    """Linears of a block as codes of a scheme, and with its inputs rounded but for experts'."""
    before = {linear: block.weight(linear).clone() for linear in linears}
    for together in _sharing(block, linears):
        weights = {linear: before[linear].float() for linear in together}
        for linear, rounded in nearest_within_range(weights, scheme.weights, stored).items():
            block.tensors[f"{linear}.weight"] = rounded
    modules = () if scheme.activations == "none" else walk.modules(block, linears)
    handles = [
        module.register_forward_pre_hook(_rounding(scheme.activations)) for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for linear, weight in before.items():
            block.tensors[f"{linear}.weight"] = weight
            block.tensors.forget(linear)


def _sharing(block: Block, linears: Sequence[str]) -> Iterator[list[str]]:
    """Those of the linears that read the same tensor, which may share numbers over their scales."""
    for shared in block.inputs:
        if together := [linear for linear in shared.linears if linear in linears]:
            yield together


def _rounding(activations: Activations) -> _Rounding:
    def hook(_module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = arguments
        return (round_as_calibrated(x, activations, float(x.abs().max())), *others)

    return hook
