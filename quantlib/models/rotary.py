"""Rotary position embeddings, with the scalings that long-context models use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantlib.models.rope import rotated_channels


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding.

    Attributes:
        frequencies: Radians per token, of each pair of channels; float32 ``[channels / 2]``. Fewer
            channels than a head has are its first ones.
        scale: Factor on the rotated queries and keys.
        long_frequencies: Those of sequences of more than ``long_from`` tokens; None where they do
            not depend on the length.
        long_from: Tokens of the longest sequence that ``frequencies`` serve.
    """

    frequencies: Tensor
    scale: float
    long_frequencies: Tensor | None = None
    long_from: int = 0

    @classmethod
    def from_parameters(
        cls, parameters: Mapping[str, Any], head_dim: int, max_positions: int, device: torch.device
    ) -> Rotary:
        """Computes the frequencies.

        Args:
            parameters: ``rope_type`` (default, linear, llama3, yarn or longrope) and what it
                needs, as transformers writes them.
            head_dim: Channels of a head.
            max_positions: ``max_position_embeddings`` of the config.
            device: Where to put them.
        """
        theta = float(parameters["rope_theta"])
        channels = rotated_channels(parameters, head_dim)
        exponents = torch.arange(0, channels, 2, dtype=torch.float32) / channels
        plain = 1.0 / theta**exponents
        kind, scale = parameters["rope_type"], 1.0
        if kind == "linear":
            plain = plain / parameters["factor"]
        elif kind == "llama3":
            plain = _llama3_frequencies(plain, parameters)
        elif kind == "yarn":
            plain, scale = _yarn_frequencies(plain, parameters, theta, channels, max_positions)
        elif kind == "longrope":
            short, long = (
                plain / torch.tensor(parameters[field], dtype=torch.float32)
                for field in ("short_factor", "long_factor")
            )
            scale = _longrope_scale(parameters, max_positions)
            long_from = int(parameters["original_max_position_embeddings"])
            return cls(short.to(device), scale, long.to(device), long_from)
        return cls(plain.to(device), scale)

    def tables(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of ``length`` positions, each ``[length, channels]``."""
        frequencies = self.frequencies
        if self.long_frequencies is not None and length > self.long_from:
            frequencies = self.long_frequencies
        positions = torch.arange(length, device=frequencies.device, dtype=torch.float32)
        angles = torch.outer(positions, frequencies).repeat(1, 2)
        return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)


def _llama3_frequencies(plain: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """Slow frequencies divided by a factor, fast ones kept, a ramp between (Llama 3.1)."""
    original = parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = original * plain / (2 * math.pi)
    ramp = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (ramp + (1 - ramp) / parameters["factor"])


def _yarn_frequencies(
    plain: Tensor,
    parameters: Mapping[str, Any],
    theta: float,
    channels: int,
    max_positions: int,
) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023, sections 3.2 and 3.4), with transformers' defaults."""
    original = parameters.get("original_max_position_embeddings") or max_positions
    factor = parameters.get("factor") or max_positions / original

    def pair_that_turns(times: float) -> float:
        return channels * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = pair_that_turns(parameters.get("beta_fast") or 32)
    last = pair_that_turns(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, channels - 1)
    pairs = torch.arange(channels // 2, dtype=torch.float32)
    interpolated = ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)
    frequencies = plain * (1 - interpolated) + plain / factor * interpolated
    scale = parameters.get("attention_factor")
    if scale is None:
        magnitude, all_dims = parameters.get("mscale"), parameters.get("mscale_all_dim")
        if magnitude and all_dims:
            scale = _yarn_scale(factor, magnitude) / _yarn_scale(factor, all_dims)
        else:
            scale = _yarn_scale(factor, 1.0)
    return frequencies, float(scale)


def _yarn_scale(factor: float, magnitude: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * magnitude * math.log(factor) + 1.0


def _longrope_scale(parameters: Mapping[str, Any], max_positions: int) -> float:
    """LongRoPE (Ding et al. 2024), the factor on attention, with transformers' defaults."""
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    original = parameters["original_max_position_embeddings"]
    factor = parameters.get("factor") or max_positions / original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotates the channels of each head, or the first of them.

    Args:
        x: ``[batch, heads, sequence, head_dim]``.
        cosines: ``[sequence, channels]``.
        sines: Of the same shape.
    """
    channels = cosines.shape[-1]
    if channels < x.shape[-1]:
        rotated = rotate(x[..., :channels], cosines, sines)
        return torch.cat((rotated, x[..., channels:]), dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
