"""Where models come from: a folder, a GGUF file, a model hub, or object storage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from quantlib.errors import InvalidInputError, Problem
from quantlib.sources.pinned import split_pin

_HUB_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?")
_FORMS = "give a folder, a .gguf file, hf://org/name@revision, or s3://bucket/prefix"


@dataclass(frozen=True)
class FolderAddress:
    """A local folder with a checkpoint in Hugging Face's layout."""

    path: Path


@dataclass(frozen=True)
class GgufAddress:
    """A local GGUF file."""

    path: Path


@dataclass(frozen=True)
class HubAddress:
    """A model on the hub.

    Attributes:
        repo: ``org/name``.
        revision: A branch, a tag or a commit.
    """

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}"


@dataclass(frozen=True)
class S3Address:
    """A prefix in object storage that holds a checkpoint in Hugging Face's layout."""

    address: str


Address = FolderAddress | GgufAddress | HubAddress | S3Address


def parse_address(text: str) -> Address:
    """Reads the address of a model; what it is pinned to is left out.

    Raises:
        InvalidInputError: ``text`` is no address of a kind that is supported.
    """
    if text.startswith("hf://"):
        match = _HUB_ADDRESS.fullmatch(text)
        if match is None:
            raise InvalidInputError.one(
                text, "is no model on the hub", "give hf://org/name@revision"
            )
        return HubAddress(match["repo"], match["revision"] or "main")
    text, _ = split_pin(text)
    if text.startswith("s3://"):
        return S3Address(text)
    path = local_path(text, "model", _FORMS)
    return GgufAddress(path) if path.suffix.lower() == ".gguf" else FolderAddress(path)


def local_path(text: str, field: str, forms: str) -> Path:
    """The path that an address without a service names; it may begin with ``file://`` or ``~``.

    Args:
        text: The address.
        field: What it is the address of, for a message about one that is empty.
        forms: The forms that an address may have, for a message.

    Raises:
        InvalidInputError: It is empty, or the address of some service.
    """
    path = text.removeprefix("file://")
    if not path.strip():
        raise InvalidInputError.one(field, "none was given", forms)
    if "://" in path:
        raise InvalidInputError.one(text, "unsupported kind of address", forms)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InvalidInputError.one(text, f"is no path: {error}") from None


def source_problems(text: str) -> list[Problem]:
    """Everything that can be found wrong with a model in a moment, without a network.

    Reads headers only; weights are examined when the model is fetched, and so is all of a model on
    the hub or in object storage.
    """
    from quantlib.sources.folder import folder_problems
    from quantlib.sources.gguf_model import gguf_problems

    try:
        address = parse_address(text)
    except InvalidInputError as error:
        return list(error.problems)
    match address:
        case FolderAddress(path):
            return folder_problems(path)
        case GgufAddress(path):
            return gguf_problems(path)
        case HubAddress() | S3Address():
            return []
