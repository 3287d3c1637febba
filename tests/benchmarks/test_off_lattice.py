"""A model whose weights were moved computes what it computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.off_lattice import OCTAVES, write_off_lattice
from quantlib.evaluation.transformers_engine import load_model


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_function_stays_and_columns_are_rescaled(
    make_model: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    source, target = make_model(tmp_path / "m", family, dtype="float32"), tmp_path / "off"
    write_off_lattice(source, target)
    tokens = torch.arange(2, 34)[None]
    with torch.no_grad():
        before, after = (
            load_model(folder, torch.float32)(tokens).logits for folder in (source, target)
        )
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    old, new = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    assert old.keys() == new.keys()
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        name = f"model.layers.1.{part}.weight"
        factors = (new[name] / old[name]).median(0).values.log2()
        assert factors.std() > 0.2 * OCTAVES, part
        assert factors.abs().max() < 1.01 * OCTAVES, part


def test_the_seed_decides_the_factors(make_model: Callable[..., Path], tmp_path: Path) -> None:
    source = make_model(tmp_path / "m")
    written = []
    for number, seed in enumerate((0, 0, 1)):
        write_off_lattice(source, tmp_path / str(number), seed)
        written.append((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert written[0] == written[1] != written[2]
