"""Names of images, and the lock file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from components._images import (
    QUANTLIB_IMAGE,
    TASKS_IMAGE,
    VALIDATE_IMAGE,
    WATCH_IMAGE,
    Images,
    is_floating,
    read_lock,
)
from quantlib.errors import InvalidInputError

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    "image",
    [
        "quantlib",
        "localhost:5000/quantlib",
        "registry.example:5000/team/quantlib",
        "quantlib:latest",
        "quantlib:main",
        "quantlib:dev",
        "quantlib:1",
        "quantlib:1.2",
        "quantlib:3.12-slim",
        "quantlib:e8b9c5",
        "quantlib:e8b9c5c-dirty",
        "quantlib:1.2.3-dirty",
        "quantlib:",
        "quantlib@sha256:0a",
    ],
)
def test_names_that_may_change_their_meaning(image: str) -> None:
    assert is_floating(image)


@pytest.mark.parametrize(
    "image",
    [
        QUANTLIB_IMAGE,
        VALIDATE_IMAGE,
        TASKS_IMAGE,
        WATCH_IMAGE,
        "quantlib:1.2.3",
        "quantlib:v1.2.3",
        "quantlib:1.2.3-rc.1",
        "localhost:5000/quantlib:1.2.3.4",
        "quantlib:e8b9c5c",
        "quantlib:" + "e8b9c5c0" * 5,
        f"registry.example/quantlib@{DIGEST}",
        f"registry.example:5000/quantlib:latest@{DIGEST}",
    ],
)
def test_names_that_keep_their_meaning(image: str) -> None:
    assert not is_floating(image)


def test_a_lock_names_every_image(tmp_path: Path) -> None:
    images = Images(
        f"localhost:5000/quantlib@{DIGEST}",
        "quantlib-validate:0.2.0",
        "quantlib-tasks:0.2.0",
        "quantlib-watch:0.2.0",
    )
    path = tmp_path / "images.lock.json"
    path.write_text(json.dumps(dataclasses.asdict(images)))
    assert read_lock(path) == images


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("{", ["is no JSON"]),
        ("[]", ["is no mapping"]),
        ('{"quantlib": "q:1"}', ["validate: is missing", "tasks: is missing", "watch: is missing"]),
        (
            '{"quantlib": 1, "validate": "has space", "other": "x"}',
            ["other: is unknown", "quantlib: is no name", "validate: is no name"],
        ),
    ],
)
def test_a_lock_that_cannot_be_used(tmp_path: Path, text: str, messages: list[str]) -> None:
    path = tmp_path / "images.lock.json"
    path.write_text(text)
    with pytest.raises(InvalidInputError) as error:
        read_lock(path)
    assert all(message in str(error.value) for message in messages)
    assert str(path) in str(error.value)


def test_a_lock_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="make images"):
        read_lock(tmp_path / "none.json")
