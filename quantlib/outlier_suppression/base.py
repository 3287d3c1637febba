"""What an outlier suppressor has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from quantlib.errors import Problem
from quantlib.models import BaseModelAdapter
from quantlib.models.layout import SharedInput
from quantlib.quantization import QuantizationSection
from quantlib.schemes import LinearScheme

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from quantlib.models.streamed import Block


class Options(BaseModel):
    """A suppressor's settings, ``outlier_suppression.options`` of a recipe; closed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BlockObserver(Protocol):
    """Collects what a suppressor wants to know of one block.

    Called with each shared input in turn, and what all batches bring to it.
    """

    def __call__(self, shared: SharedInput, inputs: Sequence[Tensor]) -> None:
        """Observes tokens, ``[..., in_features]`` of each batch."""

    def tensors(self) -> dict[str, Tensor]:
        """The statistics, float32, by name within the block."""


@dataclass(frozen=True)
class ChannelStatistics:
    """The extremes of a shared input and its linears, per channel.

    Attributes:
        input_absmax: Largest magnitude of the input over the calibration tokens, float32
            ``[in_features]``.
        weight_absmax: Largest magnitude of the linears' weights, float32 ``[in_features]``.
    """

    input_absmax: np.ndarray
    weight_absmax: np.ndarray

    @classmethod
    def of(cls, shared: SharedInput, statistics: Mapping[str, np.ndarray]) -> ChannelStatistics:
        """The extremes that :class:`ChannelObserver` collected of a shared input.

        Channels that come from the same channel of the producer (query heads that share a value
        head) are one channel to whoever scales it: each gets the largest extreme among them.

        Args:
            shared: One with a producer.
            statistics: float32 by name within the block.
        """
        producer = shared.producer
        if producer is None:
            raise ValueError(f"the input of {shared.name} cannot be scaled")

        def extremes(kind: str) -> np.ndarray:
            values = statistics[f"{shared.name}.{kind}"]
            heads = values.reshape(-1, producer.repeats, producer.head_dim)
            return heads.max(1, keepdims=True).repeat(producer.repeats, 1).reshape(-1)

        return cls(extremes("input_absmax"), extremes("weight_absmax"))


@dataclass(frozen=True)
class BlockScales:
    """What a suppressor decided for one block.

    Attributes:
        scales: What a shared input is divided by, per channel, by its name;
            float32 ``[in_features]``.
        alpha: The strength that they were computed with; None for a suppressor that has none.
    """

    scales: Mapping[str, np.ndarray]
    alpha: float | None = None


class BaseOutlierSuppressor(ABC):
    """A suppressor, set up for one recipe.

    The calibrate step runs :meth:`observer` over every block, the smooth step turns what it
    collected into :meth:`scales`, and the quantize step lets :meth:`apply` fold them into weights.

    Attributes:
        options_type: The type of the suppressor's settings.
        options: The settings.
    """

    options_type: ClassVar[type[Options]] = Options

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = self.options_type.model_validate(options)

    def problems(self, adapter: BaseModelAdapter) -> list[Problem]:
        """What of the settings does not go with a model."""
        shared = (each for block in range(adapter.blocks) for each in adapter.inputs(block))
        if any(self.scaled(each) for each in shared):
            return []
        return [
            Problem(
                "outlier_suppression",
                f"no linears of {adapter.config['model_type']} have a place for the scales",
                "choose other pairs, or leave it out",
            )
        ]

    def statistics_key(self, section: QuantizationSection) -> dict[str, Any]:
        """What decides the statistics besides model and text, as JSON.

        Recipes that agree on it share a calibration. A suppressor with an observer of its own says
        so here.

        Args:
            section: The recipe's ``quantization``.
        """
        return {}

    def observer(
        self, block: Block, tokens: int, schemes: Mapping[str, LinearScheme]
    ) -> BlockObserver:
        """What collects a block's statistics: the extremes of each input's channels.

        Args:
            block: The block of the original model.
            tokens: How many calibration tokens will come.
            schemes: Of the linears that are quantized, by name within the block.
        """
        from quantlib.blockwise.statistics import ChannelObserver

        return ChannelObserver(block)

    @abstractmethod
    def scaled(self, shared: SharedInput) -> bool:
        """Whether the suppressor scales an input, where none of its linears stays exact."""

    @abstractmethod
    def scales(
        self, block: int, inputs: Sequence[SharedInput], statistics: Mapping[str, np.ndarray]
    ) -> BlockScales:
        """What the shared inputs of a block are divided by.

        Args:
            block: Index of the block.
            inputs: Those to scale, at least one.
            statistics: What :meth:`observer` collected of the block.
        """

    def apply(
        self,
        block: Block,
        inputs: Sequence[SharedInput],
        scales: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Folds scales into a block; its function does not change.

        They go into what gives each shared input, and into the linears that read it.

        Args:
            block: The block.
            inputs: The shared inputs to do it for.
            scales: float32 ``[in_features]`` by the name of the shared input.

        Returns:
            The tensors that changed besides the weights of linears that are to be quantized, by
            name within the block, as they are stored.
        """
        from quantlib.models.folding import Fold

        changed: dict[str, torch.Tensor] = {}
        for shared in inputs:
            if shared.name not in scales or shared.producer is None:
                continue
            scale = scales[shared.name].to(block.device)
            fold = Fold.of(block, shared.producer, len(scale))
            effective = fold.effective(scale)
            for linear in shared.linears:
                _multiply(block, linear, effective)
            if shared.producer.norm:
                folded = fold.norm(scale)
            else:
                folded = fold.bias(scale)
                _multiply(block, shared.producer.name, 1 / fold.divisors(scale)[:, None])
            for name, tensor in folded.items():
                block.tensors[name] = tensor
            changed |= folded
        return changed


def _multiply(block: Block, linear: str, factors: torch.Tensor) -> None:
    # The product is float32: rounding here would add to the error of quantizing.
    block.tensors[f"{linear}.weight"] = block.weight(linear) * factors
