"""What an outlier suppressor has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    import torch

    from quantlib.models.decoder import DecoderBlock


class Options(BaseModel):
    """A suppressor's settings, ``outlier_suppression.options`` of a recipe; closed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class ChannelStatistics:
    """The extremes of a group of linears, per input channel.

    Attributes:
        input_absmax: Largest magnitude of the input over the calibration tokens, float32
            ``[in_features]``.
        weight_absmax: Largest magnitude of the linears' weights, float32 ``[in_features]``.
    """

    input_absmax: np.ndarray
    weight_absmax: np.ndarray


class BaseOutlierSuppressor(ABC):
    """A suppressor, set up for one recipe.

    Attributes:
        options_type: The type of the suppressor's settings.
        options: The settings.
    """

    options_type: ClassVar[type[Options]] = Options

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = self.options_type.model_validate(options)

    @abstractmethod
    def scales(self, statistics: ChannelStatistics) -> np.ndarray:
        """What the input of a group is divided by, per channel; float32 ``[in_features]``."""

    @abstractmethod
    def apply(
        self, block: DecoderBlock, scales: Mapping[str, torch.Tensor], stored: torch.dtype
    ) -> dict[str, torch.Tensor]:
        """Folds scales into a block; its function does not change.

        Args:
            block: The block.
            scales: float32 ``[in_features]`` by the name of the group.
            stored: The dtype in which the block's other tensors are stored.

        Returns:
            The tensors that changed besides the weights of the scaled linears, by name within the
            block, as they are stored unless they are quantized.
        """
