"""How many calibration tokens came to each expert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_MOST_NAMED = 20


@dataclass(frozen=True)
class Experts:
    """The quantized experts of a model.

    Attributes:
        tokens: Calibration tokens that were routed to each expert, by block and index; empty where
            there are no experts, or they were quantized without calibration.
        undercalibrated: Those that were calibrated on all tokens, since too few came to them.
        kinds: How many tokens of each kind of document came to these together.
    """

    tokens: Mapping[tuple[int, int], int]
    undercalibrated: tuple[tuple[int, int], ...]
    kinds: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, linears: Iterable[Mapping[str, Any]]) -> Experts:
        """The experts among the linears that were quantized.

        Args:
            linears: What the quantizer recorded of each linear.
        """
        tokens = {}
        undercalibrated: dict[tuple[int, int], dict[str, int]] = {}
        for record in linears:
            if record.get("expert_tokens") is None:
                continue
            expert = (record["block"], record["expert"])
            tokens[expert] = record["expert_tokens"]
            if record["calibrated_on"] == "all":
                undercalibrated[expert] = record.get("expert_kinds") or {}
        kinds = sum(map(Counter, undercalibrated.values()), Counter[str]())
        return cls(tokens, tuple(undercalibrated), kinds)

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

    def reached_by(self, tokens: Mapping[str, int]) -> list[tuple[str, float]]:
        """How often text of each kind reaches the experts that too few tokens came to.

        Args:
            tokens: Calibration tokens of each kind.

        Returns:
            Of each kind, how many of a thousand of its tokens come to one of those experts, in
            whichever block; most first. Empty where that is not known.
        """
        rates = {kind: 1000 * self.kinds.get(kind, 0) / count for kind, count in tokens.items()}
        return sorted(rates.items(), key=lambda each: -each[1]) if self.kinds else []

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
