"""How many calibration tokens came to each expert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_MOST_NAMED = 20


@dataclass(frozen=True)
class Experts:
    """The quantized experts of a model.

    Attributes:
        tokens: Calibration tokens that were routed to each expert, by block and index; empty where
            there are no experts, or they were quantized without calibration.
        undercalibrated: Those that were calibrated on all tokens, since too few came to them.
    """

    tokens: Mapping[tuple[int, int], int]
    undercalibrated: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, linears: Iterable[Mapping[str, Any]]) -> Experts:
        """The experts among the linears that were quantized.

        Args:
            linears: What the quantizer recorded of each linear.
        """
        tokens = {}
        undercalibrated = {}
        for record in linears:
            if record.get("expert_tokens") is None:
                continue
            expert = (record["block"], record["expert"])
            tokens[expert] = record["expert_tokens"]
            if record["calibrated_on"] == "all":
                undercalibrated[expert] = True
        return cls(tokens, tuple(undercalibrated))

    @property
    def undercalibrated_share(self) -> float:
        """Share of the experts that too few tokens came to."""
        return len(self.undercalibrated) / len(self.tokens) if self.tokens else 0.0

    def by_block(self) -> dict[int, dict[int, int]]:
        """The tokens of each expert of each block."""
        blocks: dict[int, dict[int, int]] = {}
        for (block, expert), tokens in self.tokens.items():
            blocks.setdefault(block, {})[expert] = tokens
        return blocks

    def undercalibrated_of(self, block: int) -> list[int]:
        """The experts of a block that too few tokens came to."""
        return [expert for of, expert in self.undercalibrated if of == block]

    def undercalibrated_in_words(self) -> str:
        """Blocks and experts, as ``block 0: 3, 5; block 2: 1``; many are not all named."""
        named: dict[int, list[str]] = {}
        for block, expert in self.undercalibrated[:_MOST_NAMED]:
            named.setdefault(block, []).append(str(expert))
        words = "; ".join(
            f"block {block}: {', '.join(experts)}" for block, experts in named.items()
        )
        more = len(self.undercalibrated) - _MOST_NAMED
        return words if more <= 0 else f"{words} and {more} more"
