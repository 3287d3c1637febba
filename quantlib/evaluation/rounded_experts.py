"""Experts whose inputs are rounded, as transformers lets a function of another's compute them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from quantlib.models.experts import add_outputs, expert_inner, expert_output, routed_to

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
    """All experts that a token goes to; see :func:`quantlib.models.experts.walked_experts`."""
    roundings = round_inputs(module)
    final = torch.zeros_like(hidden_states)
    routed = routed_to(top_k_index.unique().tolist(), top_k_index)

    def output(expert: int, x: Tensor) -> Tensor:
        weights = {name: parameter[expert] for name, parameter in module.named_parameters()}
        first, last = (roundings.get((expert, down), lambda x: x) for down in (False, True))
        return expert_output(module, weights, last(expert_inner(module, weights, first(x))))

    outputs = ((expert, output(expert, hidden_states[at])) for expert, (_, at) in routed.items())
    add_outputs(final, outputs, routed, top_k_weights)
    return final


ALL_EXPERTS_FUNCTIONS.register(ROUNDED_EXPERTS, _rounded_experts)
