"""Addresses of texts: the ones that ship, files, object storage, data sets on a hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from quantlib.errors import InvalidInputError
from quantlib.recipe import CalibrationSection, ValidationSection
from quantlib.sources import local_path
from quantlib.text.formats import kind_of

Purpose = Literal["calibration", "evaluation"]

ENOUGH_BYTES = 256 << 20
"""Files of a folder are taken, in the order of their names, until they hold so much."""

_TOKEN_BYTES = 32
"""Windows are chosen among four times as many, and few tokens have more than eight bytes."""

_SHIPPED_SCHEME = "shipped:"
SHIPPED = {
    "calibration": "calibration.jsonl",
    "evaluation": "evaluation.jsonl",
    "python-topics": "python-topics.jsonl",
    "sqlite": "sqlite.jsonl",
}
"""The texts that ship, by name: ``shipped:NAME``. What a purpose is called is its default."""

_DATASET = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+(?:/[\w.-]+)?)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/@\s]+|[^/@\s]+))?(?:/(?P<path>.+))?"
)
_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?")
_FORMS = (
    "give a file, a folder of files, s3://bucket/prefix, hf://datasets/org/name@revision/path, or "
    f"{_SHIPPED_SCHEME}NAME"
)


@dataclass(frozen=True)
class ShippedText:
    """A text that ships with quantlib.

    Attributes:
        name: One of :data:`SHIPPED`.
    """

    name: str


@dataclass(frozen=True)
class LocalText:
    """A file or a folder of this machine."""

    path: Path


@dataclass(frozen=True)
class ObjectText:
    """A file or a prefix in object storage."""

    address: str


@dataclass(frozen=True)
class HubText:
    """A data set on the hub, or part of one.

    Attributes:
        repo: ``org/name``.
        revision: A branch, a tag or a commit.
        path: A file or folder in it; empty for the files of ``config`` and ``split``.
        config: Name of a configuration.
    """

    repo: str
    revision: str = "main"
    path: str = ""
    config: str = ""


TextAddress = ShippedText | LocalText | ObjectText | HubText


@dataclass(frozen=True)
class Text:
    """A text that a recipe names.

    Attributes:
        dataset: Its address, as the recipe gives it; None for the text that ships.
        purpose: What it is for.
        split: Split of a data set on the hub.
        tokens: How many are wanted of it.
    """

    dataset: str | None
    purpose: Purpose
    split: str
    tokens: int

    @classmethod
    def of(cls, section: CalibrationSection | ValidationSection) -> Text:
        """The text of a recipe's section."""
        purpose: Purpose = (
            "calibration" if isinstance(section, CalibrationSection) else "evaluation"
        )
        tokens = section.num_samples * section.sequence_length
        return cls(section.dataset, purpose, section.split, tokens)

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self.dataset or f"the {self.purpose} text that ships with quantlib"

    @property
    def enough(self) -> int:
        """Bytes that are enough of many files."""
        return max(ENOUGH_BYTES, self.tokens * _TOKEN_BYTES)


def parse_text(text: Text) -> TextAddress:
    """Reads the address of a text.

    Raises:
        InvalidInputError: It is no address of a kind that is supported.
    """
    dataset = text.dataset
    if dataset is None:
        return ShippedText(text.purpose)
    if dataset.startswith(_SHIPPED_SCHEME):
        name = dataset.removeprefix(_SHIPPED_SCHEME)
        if name not in SHIPPED:
            known = ", ".join(f"{_SHIPPED_SCHEME}{each}" for each in SHIPPED)
            raise InvalidInputError.one(
                dataset, "no such text ships with quantlib", f"give {known}"
            )
        return ShippedText(name)
    if dataset.startswith("s3://"):
        return ObjectText(dataset.rstrip("/"))
    if dataset.startswith("hf://"):
        match = _DATASET.fullmatch(dataset)
        if match is None:
            raise InvalidInputError.one(
                dataset, "is no data set on the hub", "give hf://datasets/org/name@revision/path"
            )
        revision = unquote(match["revision"] or "main")
        return HubText(match["repo"], revision, (match["path"] or "").strip("/"))
    local = local_path(dataset, "dataset", _FORMS)
    path = dataset.removeprefix("file://")
    try:
        exists = local.exists()
    except (OSError, ValueError) as error:
        raise InvalidInputError.one(dataset, f"is no path: {error}") from None
    if exists or kind_of(path) or path.startswith((".", "/", "~")) or path != dataset:
        return LocalText(local)
    match = _NAME.fullmatch(dataset)
    if match is None:
        raise InvalidInputError.one(dataset, "there is no such file or folder", _FORMS)
    return HubText(match["repo"], config=match["config"] or "")
