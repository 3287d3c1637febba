"""What a search for schemes may spend: ``4.5bits``, ``6.2GB`` or ``kl=0.02``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_BITS = re.compile(rf"{_NUMBER}\s*bits?")
_BYTES = re.compile(rf"{_NUMBER}\s*([kmgt]i?)b")
_KL = re.compile(rf"kl\s*=\s*{_NUMBER}")
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Budget:
    """What a search may spend.

    Attributes:
        kind: bits: per weight of the linears of all blocks, scales and zero points counted, those
            that stay exact too. bytes: of all tensors of the checkpoint. kl: nats that the search
            predicts.
        value: How much of it.
    """

    kind: Literal["bits", "bytes", "kl"]
    value: float

    def __str__(self) -> str:
        if self.kind == "bits":
            return f"{self.value:g} bits"
        return f"{shown_bytes(self.value)}" if self.kind == "bytes" else f"KL {self.value:g}"


def shown_bytes(count: float) -> str:
    """A size as people write it: ``6.2 GB``."""
    unit, scale = ("GB", 1e9) if count >= 1e9 else ("MB", 1e6)
    return f"{count / scale:.4g} {unit}"


def parse_budget(text: str) -> Budget:
    """Reads a budget.

    Args:
        text: ``4.5bits``; ``6.2GB``, ``800MB``, ``5.5GiB``; ``kl=0.02``.

    Raises:
        ValueError: It is none, or nothing.
    """
    written = text.strip().lower()
    if match := _BITS.fullmatch(written):
        budget = Budget("bits", float(match[1]))
    elif match := _BYTES.fullmatch(written):
        base = 1024 if match[2].endswith("i") else 1000
        budget = Budget("bytes", float(match[1]) * base ** _POWERS[match[2][0]])
    elif match := _KL.fullmatch(written):
        budget = Budget("kl", float(match[1]))
    else:
        raise ValueError(
            "is no budget; give bits per weight, a size or a KL: 4.5bits, 6.2GB, kl=0.02"
        )
    if budget.value <= 0:
        raise ValueError("is nothing; give more than 0")
    return budget
