"""Mixtral: every MLP is a mixture of experts."""

from __future__ import annotations

from typing import ClassVar

from quantlib.models.mixture import MixtureAdapter
from quantlib.models.registry import model_registry


@model_registry.register("mixtral")
class MixtralAdapter(MixtureAdapter):
    """Mixtral's decoders."""

    mlp: ClassVar[str] = "block_sparse_moe"
    gate: ClassVar[str] = "w1"
    up: ClassVar[str] = "w3"
    down: ClassVar[str] = "w2"

    def is_mixture(self, block: int) -> bool:
        """Always."""
        return True
