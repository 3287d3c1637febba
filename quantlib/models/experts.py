"""Experts of a mixture as transformers computes them, one by one and stopping at their inputs.

transformers lets the function that computes a module of experts be chosen by name
(``integrations/moe.py``). Ours follows its eager one, expert by expert, and takes the weights of
an expert where the walk puts them when all batches stand before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

EXPERTS_FUNCTION = "quantlib_walked"
"""What the function is called among those of transformers."""

_LLAMA4 = "Llama4TextExperts"

Halt = Callable[[nn.Module, int, bool, Tensor, Callable[[], Tensor], Tensor], None]
"""Called at an input of an expert: the experts' module, the expert, whether it is the input of what
leads back, the tokens, what gives those that there would be if all came to the expert, and which of
all came."""


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the weights of all experts of a mixture."""
    # Where transformers lets a function of another name compute them, they say how they lie.
    chosen = hasattr(module, "is_transposed") or type(module).__name__ == _LLAMA4
    return chosen and isinstance(getattr(module, "down_proj", None), nn.Parameter)


def prepare_experts(module: Any, block: int, name: str) -> None:
    """Makes a module of experts walkable.

    Args:
        module: The module.
        block: The block that it is in.
        name: Its name within the block.
    """
    module.walked_block, module.walked_name = block, name
    module.walked_weights = {}  # of each expert at hand: its slice of every parameter
    module.walked_halt = None
    module.walked_limit = None  # how many experts are computed, where it need not be all
    module.walked_at_once = 1  # how many stand at their inputs before the first of them goes on
    module.walked_chosen = 0  # experts that a token goes to, once that was seen
    module.walked_rows = 0  # of a product, at least
    if type(module).__name__ == _LLAMA4:
        _prepare_llama4(module)


def count_of(module: Any) -> int:
    """How many experts a module has."""
    return int(module.down_proj.shape[0])


def linear_shapes(module: Any) -> dict[str, tuple[int, int]]:
    """``(out_features, in_features)`` of the matrices of one expert."""
    weights = {name: parameter[0] for name, parameter in module.named_parameters()}
    return {
        name: (view.shape[0], view.shape[1]) for name, view in linear_views(module, weights).items()
    }


def linear_views(module: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of one expert ``[out_features, in_features]``, as views that can be written.

    Args:
        module: The module of the experts, which says how they lie.
        weights: The expert's slices of its parameters.
    """
    first, down = _oriented(module, weights)
    return {**_split(module, first), "down_proj": down}


def bias_views(module: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The biases of one expert by linear; empty where there are none."""
    if not module.has_bias:
        return {}
    first = "gate_up_proj_bias" if module.has_gate else "up_proj_bias"
    return {**_split(module, weights[first]), "down_proj": weights["down_proj_bias"]}


def _split(module: Any, first: Tensor) -> dict[str, Tensor]:
    if not module.has_gate:
        return {"up_proj": first}
    if module.is_concatenated:
        half = first.shape[0] // 2
        return {"gate_proj": first[:half], "up_proj": first[half:]}
    return {"gate_proj": first[0::2], "up_proj": first[1::2]}


def _oriented(module: Any, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    first = weights["gate_up_proj" if module.has_gate else "up_proj"]
    down = weights["down_proj"]
    return (first.t(), down.t()) if module.is_transposed else (first, down)


def _linear(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if (short := module.walked_rows - len(x)) > 0:
        return _linear(module, functional.pad(x, (0, 0, 0, short)), weight, bias)[: len(x)]
    if module.is_transposed:  # the bias is added after the product was rounded
        y = x @ weight.t()
        return y if bias is None else y + bias
    return functional.linear(x, weight, bias)


def expert_inner(module: Any, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """What an expert's down projection reads, of tokens ``[tokens, hidden_size]``."""
    first, _ = _oriented(module, weights)
    bias = None
    if module.has_bias:
        bias = weights["gate_up_proj_bias" if module.has_gate else "up_proj_bias"]
    y = _linear(module, x, first, bias)
    return module._apply_gate(y) if module.has_gate else module.act_fn(y)


def expert_output(module: Any, weights: dict[str, Tensor], inner: Tensor) -> Tensor:
    """What an expert makes of the input of its down projection."""
    _, down = _oriented(module, weights)
    return _linear(module, inner, down, weights["down_proj_bias"] if module.has_bias else None)


def _weights(module: Any, expert: int) -> dict[str, Tensor]:
    """The slices of an expert at hand; those of the parameters where none was put there."""
    if expert in module.walked_weights:
        return dict(module.walked_weights[expert])
    return {name: parameter[expert] for name, parameter in module.named_parameters()}


def _outputs(
    module: Any, routed: Mapping[int, Tensor], tokens: Callable[[int], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """What experts make of the tokens that come to them.

    As many as are quantized together stop at their first inputs one after the other, then all at
    the inputs of their down projections; their weights may change while the last of them stands.

    Args:
        module: The module of the experts.
        routed: Which tokens come to each expert.
        tokens: What an expert gets if all tokens come to it, ``[tokens, hidden_size]``.
    """
    halt: Halt = module.walked_halt or (lambda *_: None)

    def inner(expert: int, x: Tensor) -> Tensor:
        return expert_inner(module, _weights(module, expert), x)

    def inner_of_all(expert: int) -> Tensor:
        return inner(expert, tokens(expert))

    experts = list(routed)
    for start in range(0, len(experts), module.walked_at_once):
        together = experts[start : start + module.walked_at_once]
        for expert in together:
            everyone = partial(tokens, expert)
            halt(module, expert, False, everyone()[routed[expert]], everyone, routed[expert])
        held = {}
        for expert in together:
            y = inner(expert, tokens(expert)[routed[expert]])
            halt(module, expert, True, y, partial(inner_of_all, expert), routed[expert])
            held[expert] = y
        for expert in together:
            yield expert, expert_output(module, _weights(module, expert), held.pop(expert))


Routed = Mapping[int, tuple[Tensor, Tensor]]
"""By expert: as which of their choices it is theirs, and the tokens that come to it."""


def routed_to(experts: Iterable[int], top_k_index: Tensor) -> Routed:
    """The tokens of some experts, where each goes to those of ``top_k_index [tokens, chosen]``."""
    found = {}
    for expert in experts:
        places, tokens = torch.where(top_k_index.t() == expert)
        found[expert] = places, tokens
    return found


def add_outputs(
    final: Tensor, outputs: Iterable[tuple[int, Tensor]], routed: Routed, top_k_weights: Tensor
) -> None:
    """Adds what experts make of their tokens, times the weights of these, to ``final``.

    Args:
        final: ``[tokens, hidden_size]``.
        outputs: Of each expert, ``[tokens that come to it, hidden_size]``.
        routed: Which tokens those are.
        top_k_weights: ``[tokens, chosen]``.
    """
    for expert, y in outputs:
        places, tokens = routed[expert]
        y = y * top_k_weights[tokens, places, None]
        final.index_add_(0, tokens, y.to(final.dtype))


def walked_experts(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """All experts, one after the other.

    Args:
        module: The module of the experts.
        hidden_states: ``[tokens, hidden_size]``.
        top_k_index: To which experts each token goes, ``[tokens, chosen]``.
        top_k_weights: With which weights.

    Returns:
        ``[tokens, hidden_size]``.
    """
    final = torch.zeros_like(hidden_states)
    if hidden_states.device.type == "meta":
        module.walked_chosen = top_k_index.shape[1]
        _on_meta(module, hidden_states)
        return final
    experts = range(count_of(module))[: module.walked_limit]
    routed = routed_to(experts, top_k_index)
    outputs = _outputs(
        module, {expert: tokens for expert, (_, tokens) in routed.items()}, lambda _: hidden_states
    )
    add_outputs(final, outputs, routed, top_k_weights)
    return final


def _on_meta(module: Any, x: Tensor) -> None:
    """Stops at both inputs of the first expert: the others are like it."""
    every = torch.arange(len(x), device=x.device)
    for _ in _outputs(module, {0: every}, lambda _: x):
        pass


def _llama4_experts(module: Any, hidden_states: Tensor) -> Tensor:
    """Every expert gets every token, scaled by its score, which is 0 where it is not routed."""
    by_expert = hidden_states.view(count_of(module), -1, hidden_states.shape[-1])
    final = torch.zeros_like(by_expert)
    if by_expert.device.type == "meta":
        _on_meta(module, by_expert[0])
        return final.view(-1, hidden_states.shape[-1])
    routed = {
        expert: torch.where((tokens != 0).any(-1))[0] for expert, tokens in enumerate(by_expert)
    }
    for expert, y in _outputs(module, routed, by_expert.__getitem__):
        final[expert][routed[expert]] = y
    return final.view(-1, hidden_states.shape[-1])


def _prepare_llama4(module: Any) -> None:
    """Gives Llama 4's experts what transformers' decorator gives those of the others."""
    # transformers multiplies all tokens; few rows take another kernel, which rounds otherwise.
    module.walked_rows = 16
    module.has_gate, module.has_bias = True, False
    module.is_transposed = module.is_concatenated = True

    def apply_gate(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return up * module.act_fn(gate)

    module._apply_gate = apply_gate
    module.forward = lambda hidden_states: _llama4_experts(module, hidden_states)


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_FUNCTION, walked_experts)
