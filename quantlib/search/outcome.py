"""What a search found: a document of its receipt, read by reports. Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(_Data):
    """What was measured of linears that get one scheme, and what was chosen.

    Attributes:
        block: Where they are.
        name: What they are called within it.
        weights: How many weights they have.
        chosen: The name of a candidate.
        errors: By candidate: the mean over tokens of the change of what the block gives, in energy,
            over the energy of what it gives.
        bytes: What they take, by candidate.
    """

    block: int
    name: str
    weights: int
    chosen: str
    errors: dict[str, float]
    bytes: dict[str, int]


class Point(_Data):
    """A choice for all linears.

    Attributes:
        name: Of the candidate that all of them are, or what the point is.
        bits: Per weight of the linears of the blocks.
        bytes: Of the checkpoint.
        kl: The KL divergence that is predicted.
    """

    name: str
    bits: float
    bytes: int
    kl: float


class Outcome(_Data):
    """What a search found.

    Attributes:
        budget: What was asked for.
        chosen: What was chosen for it.
        curve: The best choices for other budgets, from the least bits to the most.
        uniform: All of them in one candidate, for each that all can be.
        choices: What was chosen for each part.
    """

    budget: str
    chosen: Point
    curve: tuple[Point, ...]
    uniform: tuple[Point, ...]
    choices: tuple[Choice, ...]

    def to_json(self) -> bytes:
        """The document."""
        return self.model_dump_json(indent=1).encode() + b"\n"
