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
        rounded: Whether the head is quantized, so that it computes in no other dtype.
        original: The rows of the original's head that are this process's, and their biases, where
            that head is another.
        captured: Final hidden states so far; None while they are not wanted.
    """

    first: bool
    whole: bool
    device: torch.device
    heads: list[Any]
    head_dtypes: list[torch.dtype | None]
    rounded: bool
    original: dict[str, Tensor] | None = None
    captured: list[Tensor] | None = None


def attach(model: nn.Module, original_head: str | None = None) -> bool:
    """Makes a model ready for the other functions.

    Args:
        model: The model.
        original_head: A file with the head of the model that it is compared with, if that is
            another.

    Returns:
        Whether the model's own head is quantized.
    """
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
        rounded=any(map(_is_quantized, _matrices(model))),
    )
    if original_head is not None:
        probe.original = _own_rows(_matrices(model)[0], original_head, probe.device)

    def capture(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if probe.captured is not None:
            probe.captured.append(output.clone())

    model.register_forward_hook(capture)
    model.__dict__["quantlib_probe"] = probe
    return probe.rounded


def _matrices(model: nn.Module) -> list[Any]:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    return [part for part in model.modules() if isinstance(part, ParallelLMHead)]


def _is_quantized(matrix: Any) -> bool:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    exact = UnquantizedEmbeddingMethod | UnquantizedLinearMethod
    return not isinstance(matrix.quant_method, exact)


def _own_rows(matrix: Any, path: str, device: torch.device) -> dict[str, Tensor]:
    """The rows of a head in a file that a process has of its own head, in float32."""
    from safetensors import safe_open

    place = matrix.shard_indices
    rows = slice(place.org_vocab_start_index, place.org_vocab_end_index)
    with safe_open(path, "pt") as file:
        return {
            name: file.get_slice(name)[rows].to(device).float()
            for name in file.keys()  # noqa: SIM118 - it is no mapping
        }


class _OriginalHead:
    """In the place of vLLM's way to multiply with a head: multiplies with the original's."""

    def __init__(self, parts: dict[str, Tensor]) -> None:
        self._parts = parts

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The logits of a process, with zeros for the tokens that vLLM fills a vocabulary up by."""
        weight = self._parts["weight"]
        logits = nn.functional.linear(x.float(), weight, self._parts.get("bias"))
        return nn.functional.pad(logits, (0, layer.num_embeddings_per_partition - len(weight)))


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
    probe = _probe(model)
    if probe.original is None:
        states = [reference.to(probe.device), candidate.to(probe.device)]
        logits = _logits(model, torch.cat(states))
    else:
        halves = [_logits(model, reference, original=True), _logits(model, candidate)]
        here = [half.float() for half in halves if half is not None]
        logits = torch.cat(here) if here else None
    if logits is None:
        return None
    return metrics.compare_halves(logits, targets)


@torch.inference_mode()
def leads(model: nn.Module, hidden: Tensor) -> Leads | None:
    """What the head finds most likely after hidden states ``[rows, hidden_size]``."""
    logits = _logits(model, hidden)
    return None if logits is None else metrics.leads(logits)


@torch.inference_mode()
def next_token_logprobs(
    model: nn.Module, hidden: Tensor, targets: Tensor, *, original: bool = False
) -> Tensor | None:
    """Log likelihood of each target by the head, float32 ``[positions]`` on the CPU.

    Args:
        model: The model with the head.
        hidden: ``[positions, hidden_size]``.
        targets: int64 ``[positions]``.
        original: Whether the head is to be the original's.
    """
    logits = _logits(model, hidden, original=original)
    if logits is None:
        return None
    return metrics.next_token_logprobs(logits, targets.to(logits.device)).cpu()


def _probe(model: nn.Module) -> _Probe:
    probe: _Probe = model.__dict__["quantlib_probe"]
    return probe


def _logits(model: Any, hidden: Tensor, *, original: bool = False) -> Tensor | None:
    """Logits in float32: in 16 bits their rounding alone is some KL divergence.

    Those of a quantized head are what it gives.
    """
    probe = _probe(model)
    methods: list[tuple[Any, Any]] = []
    if original and probe.original is not None:
        for matrix in _matrices(model):
            methods.append((matrix, matrix.quant_method))
            matrix.quant_method = _OriginalHead(probe.original)
    else:
        _use_float32(probe)
    try:
        logits: Tensor | None = model.compute_logits(hidden.to(probe.device))
    finally:
        _use_own_dtypes(probe)
        for matrix, method in methods:
            matrix.quant_method = method
    return logits if probe.first else None


def _use_float32(probe: _Probe) -> None:
    if probe.rounded:
        return
    for head in probe.heads:
        head.head_dtype = torch.float32


def _use_own_dtypes(probe: _Probe) -> None:
    for head, dtype in zip(probe.heads, probe.head_dtypes, strict=True):
        head.head_dtype = dtype
