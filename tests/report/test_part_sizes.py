"""Where the bits went: nothing is counted twice, and nothing is left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource, ReceiptSource
from quantlib.report.model import PartSize
from quantlib.store import LocalStore

Fixture = Callable[..., Any]
RULES = [
    {"scheme": "FP8_DYNAMIC", "linears": ["attention"]},
    {"scheme": "exact", "linears": ["mlp", "experts"], "blocks": [-1]},
]
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    ("family", "config"), [("llama", {}), ("gemma3_text", {}), ("qwen3_moe", MIXTURE)]
)
def test_every_weight_and_byte_is_of_one_part(
    family: str,
    config: dict[str, Any],
    make_model: Fixture,
    small_recipe: Fixture,
    run_steps: Fixture,
    tmp_path: Path,
) -> None:
    source = make_model(tmp_path / "source", family, **config)
    store = LocalStore(tmp_path / "store")
    made = run_steps(store, small_recipe(quantization={"schemes": RULES}), source)
    parts = {
        (part.part, part.scheme): part
        for part in map(PartSize.model_validate, made.checkpoint.facts["parts"])
    }
    original = Checkpoint.open(FolderSource(source))
    written = Checkpoint.open(ReceiptSource(store, made.checkpoint))
    assert sum(part.weights for part in parts.values()) == sum(
        info.elements for info in original.tensors.values()
    )
    assert sum(part.bytes for part in parts.values()) == sum(
        info.bytes for info in written.tensors.values()
    )
    assert parts["attention", "FP8_DYNAMIC"].linears == 4 * 4
    assert 8 < parts["attention", "FP8_DYNAMIC"].bits < 9
    kind, count = ("experts", 4 * 3) if config else ("MLP", 3)
    four = parts[kind, "W4A16 in groups of 32"]
    assert four.linears == 3 * count
    # Half a byte, and a scale of 16 bits for 32; compressed-tensors keeps the shape of each, too.
    assert four.bits == pytest.approx(4.5 + 8 * 16 * four.linears / four.weights)
    assert parts[kind, "exact"].bits == 16
    assert parts[kind, "exact"].linears == 0
    assert parts["embeddings", "exact"].weights >= 512 * 64
