"""Every family of the zoo, quantized by the steps in ranges, and what transformers makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from walking import opened
from whole import blocks_of, expert_weights, read_whole

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.checks.linears import exact_linears
from quantlib.evaluation.transformers_engine import load_model
from quantlib.formats.stored import plain
from quantlib.models import BaseModelAdapter, open_model
from quantlib.models.layout import ANY_EXPERT, without_expert
from quantlib.recipe import Recipe
from quantlib.store import LocalStore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float32_products")]

TOKENS = torch.randint(3, 490, (1, 48), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Quantized:
    """A family before and after.

    Attributes:
        source: As the hub has it.
        folder: Quantized.
        adapter: Of the source.
        recipe: How.
    """

    source: Path
    folder: Path
    adapter: BaseModelAdapter
    recipe: Recipe


@pytest.fixture(scope="module", params=zoo.FAMILIES)
def quantized(
    request: Any,
    tmp_path_factory: pytest.TempPathFactory,
    small_recipe: Callable[..., Recipe],
    run_steps: Callable[..., Any],
) -> Iterator[Quantized]:
    root = tmp_path_factory.mktemp("family")
    source = zoo.make(request.param, root / "source")
    recipe = small_recipe(num_ranges=3, quantization={"format": "compressed-tensors"})
    store = LocalStore(root / "store")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("QUANTLIB_DRY_LOAD", "never")  # served by tests/test_families_served.py
        made = run_steps(store, recipe, source)
    made.export(root / "quantized")
    yield Quantized(source, root / "quantized", open_model(FolderSource(source))[1], recipe)
    shutil.rmtree(root)


def test_only_what_was_to_be_quantized_is(quantized: Quantized) -> None:
    adapter = quantized.adapter
    before, _ = open_model(FolderSource(quantized.source))
    after = Checkpoint.open(FolderSource(quantized.folder))
    made = {name for name in after.tensors if name.endswith(".weight_packed")}
    assert made == {
        f"{adapter.linear_name(block, linear)}.weight_packed"
        for block, exact in enumerate(exact_linears(quantized.recipe.quantization, adapter))
        for linear in adapter.linears(block)
        if linear not in exact
    }
    stacked = {
        tensor
        for block in range(adapter.blocks)
        for tensor in adapter.replaced(before, block, adapter.linears(block))
    }
    for name in before.tensors.keys() - stacked:
        assert after.read(name) == before.read(name), name
    for name in after.tensors.keys() - before.tensors.keys():
        assert name.removesuffix("_shape").removesuffix("_scale").removesuffix("_packed") in {
            f"{packed.removesuffix('_packed')}" for packed in made
        }, name


@torch.no_grad()
def test_transformers_computes_with_the_weights_that_were_meant(quantized: Quantized) -> None:
    """Each in its place, and within the error of four bits of what stood there."""
    model = opened(quantized.source)
    whole = read_whole(quantized.source)
    before = whole(TOKENS, use_cache=False).logits
    meant = plain(Checkpoint.open(FolderSource(quantized.folder)))
    again = opened(quantized.folder)  # what is quantized is a source too
    exact = exact_linears(quantized.recipe.quantization, quantized.adapter)
    walk = again.walk(TOKENS, range(again.adapter.blocks))
    for read, block in zip(walk, blocks_of(whole, model), strict=True):
        index = read.index
        linears = {
            linear: read.weight(linear).float().clone()
            for standing in walk.standings(read, read.inputs)
            for linear in standing.shared.linears
        }
        assert linears.keys() == set(model.adapter.linears(index))
        for linear, as_source in linears.items():
            if linear in exact[index]:
                continue
            weight = weight_of(block, linear, model.adapter.layout.kind(index).modules)
            name = f"{model.adapter.linear_name(index, linear)}.weight"
            after = read_tensor(meant, name).float()
            error = (after - weight).square().sum() / weight.square().sum()
            assert 1e-4 < error < 0.1, f"{name}: {error}"
            assert torch.equal(as_source, after), name
            weight.copy_(after)
    expected = whole(TOKENS, use_cache=False).logits
    found = load_model(quantized.folder, torch.float32)(TOKENS, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, before, rtol=1e-2, atol=1e-2)


def weight_of(block: nn.Module, linear: str, modules: Mapping[str, str]) -> Tensor:
    """The matrix ``[out_features, in_features]`` of a linear, that of one expert as a view."""
    template = without_expert(linear)
    path, of_expert, own = modules.get(template, template).partition(".*.")
    module: Any = block.get_submodule(path)
    if not of_expert:
        return module.weight
    number = linear.removeprefix(template.partition(ANY_EXPERT)[0]).partition(".")[0]
    return list(expert_weights(module, own))[int(number)]
