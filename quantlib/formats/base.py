"""What a checkpoint format has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from quantlib.schemes import Activations, CacheScheme, LinearScheme, WeightScheme

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.numbers.cached import CacheScales
    from quantlib.numbers.quantized import QuantizedLinear

SchemeOf = Callable[[str], LinearScheme | None]
"""The scheme of the linear of a full name; None where it stays exact."""


@dataclass(frozen=True)
class SchemeTargets:
    """A scheme, and what is represented so.

    Attributes:
        scheme: Of weights and activations.
        names: Regular expressions that together match the full names of the linears, as vLLM and
            as the checkpoint have them, and nothing else of the model. Of the first scheme only
            the head and the embeddings are named.
    """

    scheme: LinearScheme
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointScheme:
    """What a quantized checkpoint holds, for its ``quantization_config``.

    Attributes:
        format: Name of the format.
        schemes: What is represented how; the first is that of most weights. None where all
            weights are exact.
        exact: Full names of the linears that are not quantized, head and routers included, and
            those within ``exact_modules`` not.
        exact_fused: Names that vLLM gives to fused linears that are not quantized.
        exact_modules: Full names of modules of which no linear is quantized: the experts of a
            block.
        head: Whether the head is quantized.
        cache: How keys and values are kept; None for the dtype of the model.
        attention: The classes of transformers that keep them.
    """

    format: str
    schemes: tuple[SchemeTargets, ...]
    exact: tuple[str, ...]
    exact_fused: tuple[str, ...]
    exact_modules: tuple[str, ...] = ()
    head: bool = False
    cache: CacheScheme | None = None
    attention: tuple[str, ...] = ()


class BaseFormat(ABC):
    """How a quantized linear is written, and what tells vLLM so.

    Attributes:
        name: As recipes name it.
        vllm_name: What vLLM calls it.
        emulated: Whether what vLLM serves on GPUs alone is emulated by the worker that judges on
            CPUs (:mod:`quantlib.evaluation.emulated_linears`).
        experts_emulated: The same of experts.
        row_axis: The axis along which the output channels lie of every tensor with two.
    """

    name: ClassVar[str]
    vllm_name: ClassVar[str]
    emulated: ClassVar[bool] = False
    experts_emulated: ClassVar[bool] = False
    row_axis: ClassVar[int] = 0

    @abstractmethod
    def scheme_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why the format, or vLLM reading it, cannot hold a scheme; None where they can."""

    def mixture_problem(self, schemes: Collection[LinearScheme]) -> str | None:
        """Why one checkpoint cannot have linears of several schemes; None where it can."""
        return "it has one scheme for a whole model; use compressed-tensors for several"

    @abstractmethod
    def cpu_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve the scheme on a CPU, though on a GPU; None where it can."""

    def experts_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve experts in a scheme that it serves otherwise; None where it can."""
        return None

    def experts_multiple(self, weights: WeightScheme, activations: Activations) -> int:
        """Of what the sides of experts' linears have to be multiples, for vLLM to read them."""
        return 1

    def experts_cpu_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve experts in the scheme on a CPU; None where it can."""
        return "vLLM's CPU kernels for quantized experts need AMX instructions"

    def head_problem(self, scheme: LinearScheme, rows: int) -> str | None:
        """Why vLLM cannot read a head in a scheme that it serves otherwise; None where it can.

        Args:
            scheme: Of the head.
            rows: How many tokens it gives logits of.
        """
        return None

    def embeddings_problem(self, scheme: LinearScheme) -> str | None:
        """Why vLLM cannot read embeddings in a scheme that it serves otherwise."""
        return "vLLM reads quantized embeddings in compressed-tensors only"

    def cache_problem(self) -> str | None:
        """Why the format cannot say how keys and values are kept; None where it can."""
        return "it says nothing of keys and values; use compressed-tensors for an FP8 KV cache"

    def cache_tensors(self, scales: CacheScales) -> dict[str, Tensor]:
        """The scales of a module of attention, by the last part of their names."""
        raise NotImplementedError(f"{self.name} has none: cache_problem says so")

    @abstractmethod
    def tensors(self, linear: QuantizedLinear, activations: Activations) -> dict[str, Tensor]:
        """The tensors of a linear, by the last part of their names."""

    def joined(self, pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a linear from those of its rows, some in each piece.

        Args:
            pieces: What :meth:`tensors` gave; each but the last of a multiple of 128 rows.
        """
        import torch

        return {
            name: first
            if first.ndim == 1
            else torch.cat([piece[name] for piece in pieces], self.row_axis)
            for name, first in pieces[0].items()
        }

    @abstractmethod
    def parse(self, tensors: Mapping[str, Tensor], weights: WeightScheme) -> QuantizedLinear:
        """The inverse of :meth:`tensors`."""

    @abstractmethod
    def quantization_config(self, scheme: CheckpointScheme) -> dict[str, Any]:
        """The ``quantization_config`` of config.json."""

    def read_cache(self, config: Mapping[str, Any]) -> CacheScheme | None:
        """How keys and values are kept, by a ``quantization_config``; None where it is not said."""
        return None

    @abstractmethod
    def read_schemes(self, config: Mapping[str, Any]) -> SchemeOf:
        """The inverse of :meth:`quantization_config`.

        Returns:
            Gives the scheme of the linear of a full name; None for one that stays exact.
        """


_VOCABULARY_MULTIPLE = 64


def padding_problem(rows: int) -> str | None:
    """Why a head with its output channels along the second axis cannot be read.

    ``VocabParallelEmbedding.weight_loader`` of vLLM fills up the first axis only.
    """
    if rows % _VOCABULARY_MULTIPLE == 0:
        return None
    return (
        f"vLLM fills a vocabulary up to a multiple of {_VOCABULARY_MULTIPLE}, and {rows} tokens "
        "are none, which it can in compressed-tensors only"
    )
