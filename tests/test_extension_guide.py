"""The package of docs/extension_guide.md, installed for real, and its commands run as written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from documents import ROOT, blocks
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
PAGE = blocks(ROOT / "docs" / "extension_guide.md")


def code(language: str) -> list[str]:
    return [block.text for block in PAGE if block.language == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Path:
    """Where the commands run: the recipe, and a model of a family that nobody knows."""
    root = tmp_path_factory.mktemp("guide")
    model = make_model(root / "toy-model", "llama", max_position_embeddings=1024)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "toy_llama"}))
    project, recipe = code("toml")
    (root / "my-recipe.toml").write_text(recipe)
    package = root / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text(project)
    (package / "my_parts.py").write_text("\n".join(code("python")))
    return root


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    """One in which the package is installed."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    install += ["--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    subprocess.run([*install, str(folder / "package")], check=True)
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    path = os.pathsep.join([str(ROOT), str(folder / "site")])
    return os.environ | {"PATH": commands, "PYTHONPATH": path}


@pytest.fixture(scope="module")
def done(folder: Path, environment: dict[str, str]) -> str:
    """What the commands printed."""
    (commands,) = code("sh")
    result = subprocess.run(
        ["bash", "-euc", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_the_recipe_is_valid(done: str) -> None:
    assert "my-recipe.toml: valid" in done


def test_every_part_was_used(folder: Path, done: str) -> None:
    assert done
    config = json.loads((folder / "toy-w4" / "config.json").read_text())
    assert config["quantization_config"]["checkpoint_format"] == "gptq_v2"
    tensors = tensors_of(folder / "toy-w4")
    original = load_file(folder / "toy-model" / "model.safetensors")
    # Eight times the zero point 8, one in each half byte.
    zeros = tensors["model.layers.0.mlp.up_proj.qzeros"]
    assert torch.equal(
        zeros.long() & 0xFFFFFFFF, torch.full_like(zeros, 0x88888888, dtype=torch.int64)
    )
    norm = "model.layers.0.input_layernorm.weight"
    assert not torch.equal(tensors[norm], original[norm])
    # Nine tenths of the largest weight is what the largest code stands for.
    weight = original["model.layers.3.self_attn.o_proj.weight"].float()
    scales = tensors_of(folder / "plain")["model.layers.3.self_attn.o_proj.weight_scale"]
    expected = weight.unflatten(1, (-1, 64)).abs().amax(-1) * 0.9 / 7.5
    torch.testing.assert_close(scales.float(), expected, rtol=2**-7, atol=0)


def test_messages_list_the_added_names(folder: Path, environment: dict[str, str]) -> None:
    command = "quantlib quantize --model toy-model"
    result = subprocess.run(
        ["bash", "-c", f"{command} --output never --method clopped"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "known: awq, clipped, gptq, hqq, minmax" in result.stderr
    assert not (folder / "never").exists()
