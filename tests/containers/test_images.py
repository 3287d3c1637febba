"""What is in the images, and what is not."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from containers.conftest import docker

from components._images import QUANTLIB_IMAGE, TASKS_IMAGE, VALIDATE_IMAGE, WATCH_IMAGE
from quantlib import __version__
from quantlib.steps import STEP_NAMES

IMAGES = (QUANTLIB_IMAGE, TASKS_IMAGE, VALIDATE_IMAGE, WATCH_IMAGE)
ON_PATH = 'for tool in "$@"; do command -v "$tool"; done; true'


def inspected(image: str) -> dict[str, Any]:
    return json.loads(docker("image", "inspect", image))[0]


def layers(image: str) -> list[str]:
    return inspected(image)["RootFS"]["Layers"]


def test_images_are_small() -> None:
    assert inspected(WATCH_IMAGE)["Size"] < 0.5e9
    # torch lies in both once: PyPI's is 6 GB, with the CUDA libraries that it cannot do without.
    shared = [
        one
        for one, other in zip(layers(QUANTLIB_IMAGE), layers(VALIDATE_IMAGE), strict=False)
        if one == other
    ]
    assert len(layers(QUANTLIB_IMAGE)) - len(shared) == 2
    sizes = docker("history", "--format", "{{.Size}}", "--human=false", QUANTLIB_IMAGE).split()
    without_torch = sum(sorted(int(size) for size in sizes)[:-1])
    assert without_torch < 1.0e9


@pytest.mark.parametrize("image", IMAGES)
def test_labels_and_user(image: str) -> None:
    config = inspected(image)["Config"]
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in config["Labels"].items()
    }
    assert labels["title"] in image
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert len(labels["revision"].removesuffix("-dirty")) == 12
    assert config["User"] == "10001:10001"


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_can_be_built_or_installed_in_it(image: str) -> None:
    tools = ("gcc", "cc", "g++", "make", "ld", "pip", "pip3")
    found = docker("run", "--rm", image, "sh", "-c", ON_PATH, "sh", *tools)
    assert found == ""
    done = subprocess.run(["docker", "run", "--rm", image, "python", "-m", "pip"])
    assert done.returncode == 1


@pytest.mark.parametrize("image", IMAGES)
def test_its_user_can_write_to_scratch_and_nothing_else(image: str) -> None:
    search = "find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*'"
    found = docker("run", "--rm", image, "sh", "-c", f"{search} -type d 2>/dev/null; true")
    assert set(found.splitlines()) <= {"/scratch", "/tmp", "/var/tmp", "/run/lock"}


@pytest.mark.parametrize("image", IMAGES)
def test_its_modules_are_compiled(image: str) -> None:
    program = """
import os, pydantic, quantlib.recipe
print(*(os.path.exists(module.__cached__) for module in (pydantic, quantlib.recipe)))
"""
    assert docker("run", "--rm", image, "python", "-c", program) == "True True"


def test_only_validate_has_vllm() -> None:
    program = (
        "from quantlib.evaluation.choose_engine import installed_vllm; print(installed_vllm())"
    )
    assert docker("run", "--rm", QUANTLIB_IMAGE, "python", "-c", program) == "None"
    assert "vllm" in docker("run", "--rm", VALIDATE_IMAGE, "python", "-c", program)


@pytest.mark.parametrize("image", (QUANTLIB_IMAGE, VALIDATE_IMAGE))
def test_a_vocabulary_of_sentencepiece_can_be_read(image: str) -> None:
    # Its modules and protobuf's were of two versions that do not go together.
    docker("run", "--rm", image, "python", "-c", "import sentencepiece.sentencepiece_model_pb2")


def test_every_step_is_there() -> None:
    program = f"import {', '.join(f'quantlib.steps.{step}' for step in STEP_NAMES)}"
    docker("run", "--rm", "--read-only", QUANTLIB_IMAGE, "python", "-c", program)
