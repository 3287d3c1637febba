"""Checkpoints in another format: what is written is what quantizing into that format writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.conversion import convert
from quantlib.errors import InvalidInputError
from quantlib.formats.dequantize import dequantized_state
from quantlib.store import LocalStore

Fixture = Callable[..., Any]
ASYMMETRIC = {"weights": {"bits": 4, "group_size": 32, "symmetric": False}}
SYMMETRIC = {"weights": {"bits": 4, "group_size": 32}}
EIGHT = {"weights": {"bits": 8, "group_size": 32}}
TWO_SIZES = {
    **SYMMETRIC,
    "ignore": ["re:layers.0.self_attn"],
    "schemes": [{"scheme": "W8A16", "linears": ["mlp"], "group_size": 64}],
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.fixture
def made(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> Callable[..., Path]:
    """Quantizes a tiny model into a format."""

    def make(format_name: str, quantization: dict[str, Any], **config: Any) -> Path:
        source = tmp_path / "source"
        if not source.exists():
            make_model(source, "qwen3_moe" if config else "llama", dtype="float16", **config)
        section = {"method": "minmax", "format": format_name, **quantization}
        run = run_steps(LocalStore(tmp_path / "store"), small_recipe(quantization=section), source)
        folder: Path = tmp_path / format_name
        run.export(folder)
        return folder

    return make


def state(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(FolderSource(folder))
    return {name: read_tensor(checkpoint, name) for name in checkpoint.tensors}


@pytest.mark.parametrize(
    ("before", "after", "quantization", "config"),
    [
        ("awq", "compressed-tensors", ASYMMETRIC, {}),
        ("compressed-tensors", "awq", ASYMMETRIC, {}),
        ("gptq", "compressed-tensors", SYMMETRIC, {}),
        ("gptq", "awq", SYMMETRIC, {}),
        ("awq", "gptq", SYMMETRIC, {}),
        ("gptq", "compressed-tensors", EIGHT, {}),
        ("compressed-tensors", "gptq", TWO_SIZES, {}),
        ("compressed-tensors", "awq", SYMMETRIC, MOE),
    ],
)
def test_what_is_written_is_what_quantizing_writes(
    before: str,
    after: str,
    quantization: dict[str, Any],
    config: dict[str, Any],
    made: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source, expected = made(before, quantization, **config), made(after, quantization, **config)
    done = convert(source, tmp_path / "out", after)
    found, wanted = state(tmp_path / "out"), state(expected)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
    configs = [
        json.loads((folder / name).read_text())
        for name in ("config.json", "vllm_config.json")
        for folder in (tmp_path / "out", expected)
    ]
    assert configs[0] == configs[1]
    assert configs[2] == configs[3]
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert not (tmp_path / "out" / "quantization_report.json").exists()
    assert done.linears == len([name for name in wanted if name.endswith(("scale", "scales"))])
    plain = dict(dequantized_state(Checkpoint.open(FolderSource(source))))
    again = dict(dequantized_state(Checkpoint.open(FolderSource(tmp_path / "out"))))
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize(
    ("before", "after", "quantization", "message"),
    [
        (
            "awq",
            "gptq",
            ASYMMETRIC,
            "gptq: cannot hold this: vLLM serves it for symmetric",
        ),
        ("gptq", "awq", EIGHT, "--format awq: cannot hold this: vLLM serves it for 4 bits, not 8"),
        ("compressed-tensors", "awq", TWO_SIZES, "--format awq: cannot hold this"),
        (
            "compressed-tensors",
            "gptq",
            {"weights": {"type": "float", "bits": 8, "group_size": -1}, "activations": "fp8"},
            "layers.0.self_attn.q_proj: lies in a way that only its own format has",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    before: str,
    after: str,
    quantization: dict[str, Any],
    message: str,
    made: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source = made(before, quantization)
    with pytest.raises(InvalidInputError) as refused:
        convert(source, tmp_path / "out", after)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_leaves_nothing(
    made: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source = made("gptq", SYMMETRIC)
    monkeypatch.setattr("quantlib.conversion.shutil.copyfile", full)
    with pytest.raises(OSError, match="No space"):
        convert(source, tmp_path / "out", "awq")
    assert not (tmp_path / "out").exists()
