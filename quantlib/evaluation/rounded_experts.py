"""Experts whose inputs are rounded, as transformers lets a function of another's compute them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from quantlib.models.experts import expert_inner, expert_output

ROUNDED_EXPERTS = "quantlib_rounded"
"""What the function is called among those of transformers."""

Roundings = dict[tuple[int, bool], Callable[[Tensor], Tensor]]
"""By expert, and whether it is the input of what leads back."""


def round_inputs(module: Any) -> Roundings:
    """The roundings of a module of experts, to be filled; none at first."""
    if "roundings" not in module.__dict__:
        module.roundings, module.walked_rows = {}, 0
    roundings: Roundings = module.roundings
    return roundings


def _rounded_experts(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """All experts that a token goes to, one after the other.

    Args:
        module: The module of the experts.
        hidden_states: ``[tokens, hidden_size]``.
        top_k_index: To which experts each token goes, ``[tokens, chosen]``.
        top_k_weights: With which weights.

    Returns:
        ``[tokens, hidden_size]``.
    """
    roundings = round_inputs(module)
    final = torch.zeros_like(hidden_states)
    for expert in top_k_index.unique().tolist():
        tokens, places = torch.where(top_k_index == expert)
        weights = {name: parameter[expert] for name, parameter in module.named_parameters()}
        first, last = (roundings.get((expert, down), lambda x: x) for down in (False, True))
        inner = last(expert_inner(module, weights, first(hidden_states[tokens])))
        y = expert_output(module, weights, inner) * top_k_weights[tokens, places, None]
        final.index_add_(0, tokens, y.to(final.dtype))
    return final


ALL_EXPERTS_FUNCTIONS.register(ROUNDED_EXPERTS, _rounded_experts)
