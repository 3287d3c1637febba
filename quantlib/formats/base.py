"""What a checkpoint format has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from quantlib.recipe import Activations, WeightScheme

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.numbers.quantized import QuantizedLinear


@dataclass(frozen=True)
class CheckpointScheme:
    """What a quantized checkpoint holds, for its ``quantization_config``.

    Attributes:
        format: Name of the format.
        method: Name of the quantizer.
        weights: Type, bits, group size and symmetry.
        activations: What inputs are rounded to.
        exact: Full names of the linears that are not quantized, head and routers included, and
            those within ``exact_modules`` not.
        exact_fused: Names that vLLM gives to fused linears that are not quantized.
        exact_modules: Full names of modules of which no linear is quantized: the experts of a
            block.
    """

    format: str
    method: str
    weights: WeightScheme
    activations: Activations
    exact: tuple[str, ...]
    exact_fused: tuple[str, ...]
    exact_modules: tuple[str, ...] = ()


class BaseFormat(ABC):
    """How a quantized linear is written, and what tells vLLM so.

    Attributes:
        name: As recipes name it.
        vllm_name: What vLLM calls it.
    """

    name: ClassVar[str]
    vllm_name: ClassVar[str]

    @abstractmethod
    def scheme_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why the format, or vLLM reading it, cannot hold a scheme; None where they can."""

    @abstractmethod
    def cpu_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve the scheme on a CPU, though on a GPU; None where it can."""

    def experts_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve experts in a scheme that it serves otherwise; None where it can."""
        return None

    def experts_cpu_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve experts in the scheme on a CPU; None where it can."""
        return "vLLM's CPU kernels for quantized experts need AMX instructions"

    @abstractmethod
    def tensors(self, linear: QuantizedLinear, activations: Activations) -> dict[str, Tensor]:
        """The tensors of a linear, by the last part of their names."""

    @abstractmethod
    def parse(self, tensors: Mapping[str, Tensor], weights: WeightScheme) -> QuantizedLinear:
        """The inverse of :meth:`tensors`."""

    @abstractmethod
    def quantization_config(self, scheme: CheckpointScheme) -> dict[str, Any]:
        """The ``quantization_config`` of config.json."""

    @abstractmethod
    def read_scheme(self, config: Mapping[str, Any]) -> tuple[WeightScheme, Callable[[str], bool]]:
        """The inverse of :meth:`quantization_config`.

        Returns:
            The weight scheme, and whether the linear of a full name is quantized.
        """
