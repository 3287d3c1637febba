"""What a report says of the texts that a model was calibrated and judged on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantlib.report.part import Part
from quantlib.store.receipt import Digest


class TextRead(Part):
    """What was read of a text."""

    rows: Annotated[int, Field(description="Rows that were read before there was enough.")]
    used: Annotated[dict[str, int], Field(description="Rows by what they were recognized as.")]
    left_out: Annotated[dict[str, int], Field(description="Rows that were not used, by reason.")]
    examples: Annotated[tuple[str, ...], Field(description="The first of those.")]
    in_words: str


Written = Annotated[
    str,
    Field(
        description="Whether conversations went through the model's chat template, why, and what "
        "stands between documents."
    ),
]
Kinds = Annotated[
    dict[str, int],
    Field(description="Tokens of the windows by what kind of document they are of, most first."),
]


class CalibrationText(Part):
    """The text that the model was calibrated on."""

    source: str
    digest: Digest
    samples: int
    sequence_length: int
    tokens: int
    shipped: Annotated[bool, Field(description="It is the text that ships with quantlib.")]
    content: Annotated[Digest | None, Field(description="Digest of the text's files.")] = None
    read: TextRead | None = None
    opening: Annotated[
        tuple[str, ...], Field(description="What every window begins with: BOS, or nothing.")
    ] = ()
    written: Written = ""
    kinds: Kinds = {}  # noqa: RUF012 - pydantic copies it
    with_images: Annotated[
        int, Field(description="Of the samples, those that are a row with images each.")
    ] = 0


class EvaluationText(Part):
    """The held-out text that both models were judged on."""

    source: str
    digest: Digest
    windows: int
    sequence_length: int
    tokens: int
    content: Digest | None = None
    read: TextRead | None = None
    opening: tuple[str, ...] = ()
    written: Written = ""
    kinds: Kinds = {}  # noqa: RUF012 - pydantic copies it
