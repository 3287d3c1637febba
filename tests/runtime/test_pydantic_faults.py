"""Faults of a file in a line."""

import pytest
from pydantic import BaseModel, ValidationError

from quantlib.runtime.pydantic_faults import faults_of


class Inner(BaseModel):
    """A part of a file."""

    sizes: list[int]


class File(BaseModel):
    """A file."""

    name: str
    inner: Inner


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Invalid JSON: EOF while parsing an object at line 1 column 1"),
        ("[]", "Input should be an object"),
        (
            '{"name": 1}',
            "name: Input should be a valid string; inner: Field required",
        ),
        (
            '{"inner": {"sizes": ["a", "b", 1, "c"]}}',
            "name: Field required; inner.sizes.0: Input should be a valid integer, unable to parse "
            "string as an integer; inner.sizes.1: Input should be a valid integer, unable to parse "
            "string as an integer; and 1 more",
        ),
    ],
)
def test_faults_are_named_with_their_fields(text: str, said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        File.model_validate_json(text)
    assert faults_of(refused.value) == said
