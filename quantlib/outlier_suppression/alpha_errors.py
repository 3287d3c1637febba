"""What each strength of smoothing would cost a block, measured on a sample of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quantlib.blockwise.statistics import ChannelObserver, TokenSample
from quantlib.models.layout import SharedInput
from quantlib.models.streamed import Block
from quantlib.numbers.inputs import round_as_calibrated
from quantlib.outlier_suppression.base import ChannelStatistics
from quantlib.outlier_suppression.smoothing import SAMPLE_TOKENS, smoothing_scales
from quantlib.quantizers.rounding import round_within_range
from quantlib.schemes import LinearScheme


class AlphaErrors:
    """The extremes of each channel, and the output error that each alpha leads to.

    Errors are measured on tokens that do not count towards the extremes: a strong alpha fits every
    channel to the largest value that it was seen with, and what is larger in other text saturates
    where activations have a static scale.

    Weights are rounded to nearest, whatever quantizer the recipe names: its own would cost as much
    as quantizing, once per alpha.
    """

    def __init__(
        self,
        block: Block,
        inputs: Sequence[SharedInput],
        tokens: int,
        alphas: Sequence[float],
        schemes: Mapping[str, LinearScheme],
    ) -> None:
        """Observes a block.

        Args:
            block: The block of the original model.
            inputs: Those of its shared inputs that are to be scaled.
            tokens: How many calibration tokens will come.
            alphas: The strengths to try.
            schemes: What weights and activations of linears are rounded to, by name.
        """
        self._block = block
        self._alphas = alphas
        self._schemes = schemes
        self._channels = ChannelObserver(block)
        self._tokens = tokens
        # An input with a linear that stays exact is not scaled.
        self._tried = {shared.name for shared in inputs if schemes.keys() >= set(shared.linears)}
        self._found: dict[str, Tensor] = {}

    def __call__(self, shared: SharedInput, inputs: Sequence[Tensor]) -> None:
        """Observes tokens, ``[..., in_features]`` of each batch."""
        if shared.name not in self._tried:
            self._channels(shared, inputs)
            return
        sample = TokenSample(self._tokens, min(SAMPLE_TOKENS, self._tokens // 4))
        self._channels(shared, [sample.add(x) for x in inputs])
        others = {name: value.cpu().numpy() for name, value in self._channels.tensors().items()}
        statistics = ChannelStatistics.of(shared, others)
        x = sample.tokens().float()
        self._found[f"{shared.name}.alpha_errors"] = self._errors(shared, x, statistics)
        self._channels(shared, inputs)

    def tensors(self) -> dict[str, Tensor]:
        """Those of :class:`ChannelObserver` and ``<input>.alpha_errors``, float32 ``[alphas]``."""
        return self._channels.tensors() | self._found

    def _errors(self, shared: SharedInput, x: Tensor, statistics: ChannelStatistics) -> Tensor:
        """The sum over an input's linears of the energy of the error over that of the output."""
        weights = self._weights(shared)
        alike: dict[LinearScheme, list[str]] = {}
        for name in weights:
            alike.setdefault(self._schemes[name], []).append(name)
        outputs = {name: x @ weight.t() for name, weight in weights.items()}
        extremes = torch.from_numpy(statistics.input_absmax).to(x.device)
        errors = []
        for alpha in self._alphas:
            scales = torch.from_numpy(smoothing_scales(statistics, alpha)).to(x.device)
            largest, error = float((extremes / scales).max()), 0.0
            for scheme, names in alike.items():
                rounded = round_as_calibrated(x / scales, scheme.activations, largest)
                scaled = {name: weights[name] * scales for name in names}
                made = round_within_range(scaled, scheme.weights, torch.float32)
                error += sum(
                    _relative_error(rounded @ linear.dequantize().t(), outputs[name])
                    for name, linear in made.items()
                )
            errors.append(error)
        return torch.tensor(errors)

    def _weights(self, shared: SharedInput) -> Mapping[str, Tensor]:
        return {name: self._block.weight(name).float() for name in shared.linears}


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    energy = float(wanted.square().sum())
    return float((found - wanted).square().sum()) / energy if energy > 0 else 0.0
