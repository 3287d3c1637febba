"""Walking a model block by block gives what transformers gives, for every family of the zoo."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor
from walking import opened
from whole import blocks_of, expert_weights, read_whole, states_of

from quantlib.checkpoint.source import FolderSource
from quantlib.models import open_model
from quantlib.models.boundary import HIDDEN, root_of
from quantlib.models.layout import without_expert
from quantlib.models.streamed import StreamedModel

pytestmark = pytest.mark.usefixtures("float32_products", "sample_by_sample")
TOKENS = torch.randint(3, 490, (2, 48), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=zoo.FAMILIES)
def family(request: Any) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = zoo.make(family, tmp_path_factory.mktemp("zoo") / family)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def stream(folder: Path) -> Callable[[], StreamedModel]:
    """Opens the model; what it is made of is found once."""
    _, adapter = open_model(FolderSource(folder))

    def again() -> StreamedModel:
        checkpoint, same = open_model(FolderSource(folder), adapter.layout)
        return same.load_model(checkpoint, torch.device("cpu"))

    return again


@pytest.fixture
def sample_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlib.models.streamed.batch_samples", lambda *_: 1)


def hidden(boundary: Mapping[str, Tensor]) -> Tensor:
    return next(tensor for name, tensor in boundary.items() if root_of(name) == HIDDEN)


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for block, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(one, other), f"block {block}: {(one - other).abs().max()}"


def rounded(weight: Tensor, linear: str = "") -> Tensor:
    """To few values; to fewer still where it is an expert's gate."""
    step = weight.abs().amax(1, keepdim=True) / (5 if linear.endswith("*.gate_proj") else 7)
    return (weight / step).round() * step


def round_whole(whole: Any, model: StreamedModel) -> None:
    """Rounds all linears that can be quantized, those of experts where they lie together."""
    for index, block in enumerate(blocks_of(whole, model)):
        modules = model.adapter.layout.kind(index).modules
        linears = {without_expert(name) for name in model.adapter.linears(index)}
        for linear in (modules.get(name, name) for name in linears):
            path, of_expert, own = linear.partition(".*.")
            module: Any = block.get_submodule(path)
            if not of_expert:
                module.weight.copy_(rounded(module.weight))
                continue
            for weight in expert_weights(module, own):
                weight.copy_(rounded(weight, linear))


@torch.no_grad()
def test_weights_are_read_by_names_as_by_modules(
    stream: Callable[[], StreamedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without tokens, and without modules, the weights of linears are the same."""
    walked, named = stream(), stream()
    walk = walked.walk(TOKENS, range(walked.adapter.blocks))
    monkeypatch.setattr("quantlib.models.streamed.Skeleton", None)
    for block in walk:
        other = named.block(block.index)
        linears = []
        for standing in walk.standings(block, block.inputs):
            for linear in standing.shared.linears:
                assert torch.equal(block.weight(linear), other.weight(linear)), linear
                linears.append(linear)
        assert set(linears) == set(named.adapter.linears(block.index))


def test_hidden_states_are_those_of_transformers(
    family: str, folder: Path, stream: Callable[[], StreamedModel]
) -> None:
    model = stream()
    expected = states_of(read_whole(folder), model, TOKENS)
    kept = []
    walk = model.walk(TOKENS, range(model.adapter.blocks))
    for block in walk:
        walk.pass_through(block)
        kept.append(walk.boundary())
    assert_same([hidden(boundary) for boundary in kept], expected)

    # Another worker starts at each block with what the one before it kept.
    again = stream()
    for index in range(1, again.adapter.blocks):
        walk = again.walk(TOKENS, range(index, index + 1), kept[index - 1])
        for block in walk:
            walk.pass_through(block)
            found = walk.boundary()
        assert found.keys() == kept[index].keys()
        assert all(torch.equal(found[name], kept[index][name]) for name in found)


@torch.no_grad()
def test_weights_may_change_while_the_walk_stands_before_them(
    family: str, folder: Path, stream: Callable[[], StreamedModel]
) -> None:
    model = stream()
    whole = read_whole(folder)
    round_whole(whole, model)
    expected = states_of(whole, model, TOKENS)
    found = []
    walk = model.walk(TOKENS, range(model.adapter.blocks))
    for block in walk:
        stood_at: list[str] = []
        modules = model.adapter.layout.kind(block.index).modules
        for standing in walk.standings(block, block.inputs, experts_at_once=3):
            stood_at += standing.shared.linears
            for linear in standing.shared.linears:
                module = modules.get(without_expert(linear), linear)
                block.tensors[f"{linear}.weight"] = rounded(block.weight(linear), module)
        assert sorted(stood_at) == sorted(model.adapter.linears(block.index))
        found.append(hidden(walk.boundary()))
    assert_same(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["deepseek_v3", "ernie4_5_moe"])
def test_what_a_family_keeps_in_float32_stays_so(name: str, tmp_path: Path) -> None:
    """Where the rest is in bfloat16: every parameter has the dtype that transformers gives it."""
    folder = zoo.make(name, tmp_path / name)
    model = opened(folder)
    model.dtype = torch.bfloat16
    whole = read_whole(folder, torch.bfloat16)
    dtypes = set()
    walk = model.walk(TOKENS, range(model.adapter.blocks))
    for block in walk:
        expected = dict(blocks_of(whole, model)[block.index].named_parameters())
        expected |= dict(blocks_of(whole, model)[block.index].named_buffers())
        own = model.reader.skeleton.blocks[block.index]
        for part, tensor in (*own.named_parameters(), *own.named_buffers()):
            if tensor.device.type != "meta":  # experts are read one by one
                assert tensor.dtype == expected[part].dtype, part
                dtypes.add(tensor.dtype)
        walk.pass_through(block)
    assert dtypes == {torch.bfloat16, torch.float32}


@torch.no_grad()
def test_yarn_scales_attention_as_its_config_says(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """In the words of the hub, with the quotient of two scales that DeepSeek has."""
    folder = make_model(tmp_path / "yarn", dtype="float32")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["rope_parameters"]
    scaling = {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 16}
    scaling |= {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.5}
    config |= {"rope_theta": 10000.0, "rope_scaling": scaling}
    path.write_text(json.dumps(config), encoding="utf-8")
    model = opened(folder)
    expected = states_of(read_whole(folder), model, TOKENS)
    found = []
    walk = model.walk(TOKENS, range(model.adapter.blocks))
    for block in walk:
        walk.pass_through(block)
        found.append(hidden(walk.boundary()))
    assert_same(found, expected)
    base: Any = model.reader.skeleton.base
    stretch = math.log(32)
    assert base.rotary_emb.attention_scaling == pytest.approx(
        (0.1 * stretch + 1) / (0.05 * stretch + 1)
    )


def test_modes_may_not_change_between_stops(tiny_llama: Path) -> None:
    with torch.no_grad():
        walk = opened(tiny_llama).walk(TOKENS, range(1))
        blocks = iter(walk)
        block = next(blocks)
        standings = walk.standings(block, block.inputs)
        next(standings)
    with pytest.raises(RuntimeError, match="gradients or autocast are not what they were, at"):
        next(standings)
    walk.close()
