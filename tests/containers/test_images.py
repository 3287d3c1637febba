"""What is in the images, and what is not."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from containers.conftest import ROOT, docker

from components._images import QUANTLIB_IMAGE, VALIDATE_IMAGE, WATCH_IMAGE
from quantlib import __version__
from quantlib.steps import STEP_NAMES

IMAGES = (QUANTLIB_IMAGE, VALIDATE_IMAGE, WATCH_IMAGE)
ON_PATH = 'for tool in "$@"; do command -v "$tool"; done; true'


def inspected(image: str) -> dict[str, Any]:
    return json.loads(docker("image", "inspect", image))[0]


def test_images_are_small() -> None:
    assert inspected(QUANTLIB_IMAGE)["Size"] < 1.8e9
    assert inspected(WATCH_IMAGE)["Size"] < 0.5e9


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
    program = "from quantlib.evaluation.engines import installed_vllm; print(installed_vllm())"
    assert docker("run", "--rm", QUANTLIB_IMAGE, "python", "-c", program) == "None"
    assert "vllm" in docker("run", "--rm", VALIDATE_IMAGE, "python", "-c", program)


def test_every_step_is_there() -> None:
    program = f"import {', '.join(f'quantlib.steps.{step}' for step in STEP_NAMES)}"
    docker("run", "--rm", "--read-only", QUANTLIB_IMAGE, "python", "-c", program)


def test_its_bill_of_materials_names_packages_of_both_kinds() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "sbom.py", QUANTLIB_IMAGE], check=True)
    document = json.loads((ROOT / "build" / "sbom" / "quantlib.cdx.json").read_text())
    assert document["bomFormat"] == "CycloneDX"
    packages = {component["purl"].split("@")[0]: component for component in document["components"]}
    assert packages["pkg:pypi/quantlib"]["version"] == __version__
    assert packages["pkg:pypi/quantlib"]["licenses"] == [{"expression": "Apache-2.0"}]
    assert packages["pkg:pypi/torch"]["version"].startswith("2.")
    assert "pkg:deb/debian/libc6" in packages
    assert "pkg:pypi/pip" not in packages
