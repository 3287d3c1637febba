"""Addresses of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantlib.errors import InvalidInputError
from quantlib.sources import (
    FolderAddress,
    GgufAddress,
    HubAddress,
    S3Address,
    parse_address,
    source_problems,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("models/tiny", FolderAddress(Path("models/tiny"))),
        ("file:///models/tiny", FolderAddress(Path("/models/tiny"))),
        ("~/tiny", FolderAddress(Path.home() / "tiny")),
        ("models/tiny.Q4_0.GGUF", GgufAddress(Path("models/tiny.Q4_0.GGUF"))),
        ("hf://org/tiny-1.5", HubAddress("org/tiny-1.5", "main")),
        ("hf://org/tiny@refs/pr/1", HubAddress("org/tiny", "refs/pr/1")),
        ("s3://bucket/tiny", S3Address("s3://bucket/tiny")),
    ],
)
def test_an_address_is_recognized(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "none was given"),
        ("  ", "none was given"),
        ("gs://bucket/tiny", "unsupported kind of address"),
        ("hf://tiny", "is no model on the hub"),
        ("hf://datasets/org/tiny", "is no model on the hub"),
        ("hf://org/tiny@", "is no model on the hub"),
        ("hf://org/tiny@a@b", "is no model on the hub"),
    ],
)
def test_another_address_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        parse_address(text)
    assert says in str(source_problems(text)[0])


def test_problems_are_found_without_a_network(tmp_path: Path) -> None:
    assert source_problems("hf://org/tiny") == []
    assert "there is no such folder" in str(source_problems(str(tmp_path / "none"))[0])
    assert "there is no such file" in str(source_problems(str(tmp_path / "none.gguf"))[0])
