"""What is done with a model of vLLM where it is: in each of the processes that share it.

Every function takes the model first, can be pickled, and has to be called by all ranks together:
the head is cut over them. Only the first rank gives a result, the others None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.evaluation import metrics
from quantlib.evaluation.metrics import Comparison, Leads


@dataclass
class _Probe:
    """What a model carries to be looked at.

    Attributes:
        first: Whether this process gives the results.
        whole: Whether it has the whole model, and is the caller's own.
        device: Where the model is.
        heads: vLLM's modules that compute logits.
        head_dtypes: What each of them computes in by itself.
        captured: Final hidden states so far; None while they are not wanted.
    """

    first: bool
    whole: bool
    device: torch.device
    heads: list[Any]
    head_dtypes: list[torch.dtype | None]
    captured: list[Tensor] | None = None


def attach(model: nn.Module) -> None:
    """Makes a model ready for the other functions."""
    from vllm.distributed import (
        get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size,
    )
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    heads: list[Any] = [part for part in model.modules() if isinstance(part, LogitsProcessor)]
    probe = _Probe(
        first=get_tensor_model_parallel_rank() == 0,
        whole=get_tensor_model_parallel_world_size() == 1,
        device=next(model.parameters()).device,
        heads=heads,
        head_dtypes=[head.head_dtype for head in heads],
    )

    def capture(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if probe.captured is not None:
            probe.captured.append(output.clone())

    model.register_forward_hook(capture)
    model.__dict__["quantlib_probe"] = probe


def start_capture(model: nn.Module, float32_head: bool) -> None:
    """Keeps final hidden states from now on.

    Args:
        model: The model.
        float32_head: Whether vLLM's own logits are to be float32 meanwhile.
    """
    probe = _probe(model)
    if probe.first:
        probe.captured = []
    if float32_head:
        _use_float32(probe)


@torch.inference_mode()
def take_captured(model: nn.Module) -> Tensor | None:
    """Ends what :func:`start_capture` began.

    Returns:
        Final hidden states ``[positions, hidden_size]``: on the model's device if this process has
        the whole model, else on the CPU.
    """
    probe = _probe(model)
    _use_own_dtypes(probe)
    if probe.captured is None:
        return None
    hidden = torch.cat(probe.captured)
    probe.captured = None
    return hidden if probe.whole else hidden.cpu()


@torch.inference_mode()
def count_logits(model: nn.Module, hidden: Tensor) -> int | None:
    """How many logits the head gives for each of the hidden states ``[rows, hidden_size]``."""
    logits = _logits(model, hidden)
    return None if logits is None else logits.shape[1]


@torch.inference_mode()
def compare(
    model: nn.Module, reference: Tensor, candidate: Tensor, targets: Tensor
) -> Comparison | None:
    """Compares what the head makes of two models' hidden states.

    Args:
        model: The model with the head.
        reference: ``[positions, hidden_size]``.
        candidate: The same of the other model.
        targets: int64 ``[positions]``, the token that comes next.

    Returns:
        The comparison, on the CPU.
    """
    device = _probe(model).device
    logits = _logits(model, torch.cat([reference.to(device), candidate.to(device)]))
    if logits is None:
        return None
    return metrics.compare_halves(logits, targets)


@torch.inference_mode()
def leads(model: nn.Module, hidden: Tensor) -> Leads | None:
    """What the head finds most likely after hidden states ``[rows, hidden_size]``."""
    logits = _logits(model, hidden)
    return None if logits is None else metrics.leads(logits)


@torch.inference_mode()
def next_token_logprobs(model: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor | None:
    """Log likelihood of each target by the head, float32 ``[positions]`` on the CPU.

    Args:
        model: The model with the head.
        hidden: ``[positions, hidden_size]``.
        targets: int64 ``[positions]``.
    """
    logits = _logits(model, hidden)
    if logits is None:
        return None
    return metrics.next_token_logprobs(logits, targets.to(logits.device)).cpu()


def _probe(model: nn.Module) -> _Probe:
    probe: _Probe = model.__dict__["quantlib_probe"]
    return probe


def _logits(model: Any, hidden: Tensor) -> Tensor | None:
    """Logits in float32: in 16 bits their rounding alone is some KL divergence."""
    probe = _probe(model)
    _use_float32(probe)
    try:
        logits: Tensor | None = model.compute_logits(hidden.to(probe.device))
    finally:
        _use_own_dtypes(probe)
    return logits if probe.first else None


def _use_float32(probe: _Probe) -> None:
    for head in probe.heads:
        head.head_dtype = torch.float32


def _use_own_dtypes(probe: _Probe) -> None:
    for head, dtype in zip(probe.heads, probe.head_dtypes, strict=True):
        head.head_dtype = dtype
