"""What a quantization method has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from quantlib.errors import QuantizationError
from quantlib.formats import CheckpointScheme, format_registry
from quantlib.quantization import QuantizationSection
from quantlib.schemes import WeightType

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quantlib.models.folding import Fold
    from quantlib.numbers.quantized import QuantizedLinear


GROUP_SIZES = (-1, 16, 32, 64, 128)
"""Those that some format has; -1 is one group per output channel."""


ANY_TYPE = None
"""In the place of types: whatever codes stand for."""


class Options(BaseModel):
    """A method's settings, ``quantization.options`` of a recipe; closed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class InputStatistics:
    """What is known of the input that linears share.

    Attributes:
        hessian: float32 ``[in_features, in_features]``, the mean of ``x.T @ x`` over the
            calibration tokens; None unless the quantizer ``needs_hessian``.
        fold: Where scales per input channel can go; None where the input has to stay as it is.
    """

    hessian: Tensor | None = None
    fold: Fold | None = None


def hessians_of(inputs: Sequence[InputStatistics], method: str) -> list[Tensor]:
    """The Hessian of each input, for a method that cannot do without.

    Raises:
        ValueError: One of them is not known.
    """
    hessians = [known.hessian for known in inputs if known.hessian is not None]
    if len(hessians) < len(inputs):
        raise ValueError(f"{method} needs the Hessian of the input")
    return hessians


def not_finite(linears: Iterable[str]) -> QuantizationError:
    """That the Hessian of the input of some linears is not finite."""
    return QuantizationError(
        " and ".join(linears),
        "the Hessian of the input is not finite: look for calibration text or weights that make "
        "activations overflow",
    )


@dataclass(frozen=True)
class QuantizedInput:
    """The quantized linears that share an input.

    Attributes:
        linears: By the names that they were given under.
        input_scales: What their input has to be divided by, per channel, for their codes to be
            right; float32 ``[in_features]``. None where the input stays.
        damping: Share of the Hessian's mean diagonal that was added to it; None where no Hessian
            was factorized.
        damping_attempts: Factorizations tried.
    """

    linears: Mapping[str, QuantizedLinear]
    input_scales: Tensor | None = None
    damping: float | None = None
    damping_attempts: int = 0


class BaseQuantizer(ABC):
    """A quantization method, set up for one recipe.

    Attributes:
        options_type: The type of the method's settings.
        types: Types of numbers that codes can be: int, float, ...; ``ANY_TYPE`` for a method that
            sees a grid by rounding and the search for scales alone.
        needs_hessian: Whether :meth:`quantize` uses the Hessian of the linears' input. Without it
            no calibration text is read.
        section: The recipe's ``quantization``.
        options: The method's settings.
    """

    options_type: ClassVar[type[Options]] = Options
    types: ClassVar[tuple[WeightType, ...] | None] = ("int",)
    needs_hessian: bool = False

    def __init__(self, section: QuantizationSection) -> None:
        self.section = section
        self.options = self.options_type.model_validate(section.options)

    @abstractmethod
    def quantize(
        self, weights: Mapping[str, Tensor], inputs: InputStatistics, stored: torch.dtype
    ) -> QuantizedInput:
        """Quantizes linears that share an input.

        Args:
            weights: float32 ``[out_features, in_features]`` by name.
            inputs: What is known of their input.
            stored: The dtype in which scales are stored.

        Raises:
            QuantizationError: A linear could not be quantized; nothing else is used in its place.
        """

    @classmethod
    @abstractmethod
    def get_supported_bits(cls) -> tuple[int, ...]:
        """Bits of whole numbers that the method can produce; other types have their own."""

    @classmethod
    @abstractmethod
    def get_supported_group_sizes(cls) -> tuple[int, ...]:
        """Group sizes that the method can produce; -1 is one group per output channel."""

    def _add_vllm_compatibility(self, scheme: CheckpointScheme) -> dict[str, Any]:
        """The ``quantization_config`` of the checkpoint's config.json, as vLLM reads it.

        Args:
            scheme: What the checkpoint holds, and which linears it leaves exact.
        """
        return format_registry.get_format(scheme.format).quantization_config(scheme)


class BatchQuantizer(BaseQuantizer):
    """A method whose arithmetic is worth doing for linears of several inputs at once.

    Its experts are quantized as many together as :mod:`quantlib.quantizers.batches` says.
    """

    def quantize(
        self, weights: Mapping[str, Tensor], inputs: InputStatistics, stored: torch.dtype
    ) -> QuantizedInput:
        """Quantizes linears that share an input: a batch of one."""
        (quantized,) = self.quantize_batch([weights], [inputs], stored)
        return quantized

    @abstractmethod
    def quantize_batch(
        self,
        weights: Sequence[Mapping[str, Tensor]],
        inputs: Sequence[InputStatistics],
        stored: torch.dtype,
    ) -> list[QuantizedInput]:
        """Quantizes linears of several inputs of one shape, each input as if it were alone.

        Args:
            weights: Of each input float32 ``[out_features, in_features]`` by name.
            inputs: What is known of each; all can be folded, and into producers of one
                kind, or none.
            stored: The dtype in which scales are stored.

        Raises:
            QuantizationError: A linear could not be quantized; nothing else is used in its place.
        """
