"""What models are called after where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantlib.checks.recipe import parse_recipe
from quantlib.sources.naming import address_name, named


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("./my-model", "my-model"),
        ("/data/my-model/", "my-model"),
        ("file:///data/my-model", "my-model"),
        ("/data/SmolLM2-135M-Instruct.Q4_K_M.gguf", "SmolLM2-135M-Instruct.Q4_K_M"),
        ("/data/my model (v2)", "my-model-v2"),
        ("/hub/models--HuggingFaceTB--SmolLM2-135M/snapshots/" + "a" * 40, "SmolLM2-135M"),
        ("/hub/models--gpt2/snapshots/" + "a" * 40 + "/", "gpt2"),
        ("s3://bucket/models/llama", "llama"),
        ("s3://bucket", "bucket"),
        ("/data/model#sha256:" + "0" * 64, "model"),
        ("hf://org/name@main", ""),  # the fetch step knows it
        ("/", ""),
        ("", ""),
    ],
)
def test_names_of_addresses(address: str, name: str) -> None:
    assert address_name(address) == name


def test_the_current_folder_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "llama")
    assert address_name(".") == "llama"
    assert address_name("sub/..") == "llama"


def test_a_name_in_the_recipe_comes_first() -> None:
    assert named(parse_recipe({}), "/data/llama").publish.name == "llama"
    given = parse_recipe({"publish": {"name": "mine"}, "model": "/data/other"})
    assert named(given, "/data/llama") is given
    assert named(parse_recipe({"model": "/data/other"}), "").publish.name == "other"
    assert named(parse_recipe({}), "hf://org/name").publish.name is None
