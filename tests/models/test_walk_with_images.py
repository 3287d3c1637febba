"""A wrapper's forward is walked with images as with text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from walking import opened
from whole import blocks_of, read_whole

import images
from quantlib.blockwise.statistics import HessianAccumulator
from quantlib.errors import InvalidInputError
from quantlib.models.boundary import Boundary
from quantlib.models.reading import Reader
from quantlib.models.samples import one_by_one
from quantlib.models.streamed import StreamedModel
from quantlib.models.walk import Walk

pytest.importorskip("torchvision")  # which the processors of images need

pytestmark = pytest.mark.usefixtures("float32_products")


def with_images(folder: Path, family: str) -> list[dict[str, Any]]:
    """What the model's processor makes of two texts of different length, each with an image."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    texts = [images.prompt(family), f"{images.prompt(family)} And what else?"]
    return [
        dict(processor(images=[images.picture(seed)], text=text, return_tensors="pt"))
        for seed, text in enumerate(texts)
    ]


def before_blocks(whole: Any, model: StreamedModel, batches: list[dict[str, Any]]) -> list[Any]:
    """The hidden states before every block of transformers' model, of each batch."""
    found: list[list[Tensor]] = []

    def keep(_module: nn.Module, arguments: Any, options: Any) -> None:
        found[-1].append((arguments[0] if arguments else options["hidden_states"]).clone())

    for block in blocks_of(whole, model):
        block.register_forward_pre_hook(keep, with_kwargs=True)
    for batch in batches:
        found.append([])
        whole.base_model(**batch, use_cache=False)
    return [list(states) for states in zip(*found, strict=True)]


def reader_of(model: StreamedModel) -> Reader:
    """With all outside of the blocks but the head: towers and projectors too."""
    head = f"{model.reader.skeleton.head}."
    model.reader.read_outer(lambda key: not key.startswith(head))
    return model.reader


def walked(
    model: StreamedModel,
    batches: list[dict[str, Any]],
    blocks: range,
    boundaries: list[Boundary] | None = None,
) -> list[list[Boundary]]:
    """What each block hands on, of each batch."""
    walk = Walk(reader_of(model), batches, blocks, boundaries)
    found = []
    for index in blocks:
        walk.enter(index)
        for _ in walk.stops(index):
            pass
        found.append(walk.boundaries())
        walk.leave(index)
    walk.close()
    return found


@pytest.mark.parametrize("family", images.TOKENS)
@torch.no_grad()
def test_hidden_states_are_those_of_transformers_from_every_block_on(
    family: str, tmp_path: Path
) -> None:
    folder = images.make(family, tmp_path)
    batches = with_images(folder, family)
    model = opened(folder)
    whole = read_whole(folder)
    expected = before_blocks(whole, model, batches)
    seen: list[list[Tensor]] = [[] for _ in expected]
    for index, block in enumerate(model.reader.skeleton.blocks):

        def keep(_module: nn.Module, arguments: Any, options: Any, at: int = index) -> None:
            seen[at].append((arguments[0] if arguments else options["hidden_states"]).clone())

        block.register_forward_pre_hook(keep, with_kwargs=True)
    count = model.adapter.blocks
    handed_on = walked(model, batches, range(count))
    for found, wanted in zip(seen, expected, strict=True):
        assert all(map(torch.equal, found, wanted))

    for start in range(1, count):
        again = walked(opened(folder), batches, range(start, count), handed_on[start - 1])
        for found, wanted in zip(again, handed_on[start:], strict=True):
            for one, other in zip(found, wanted, strict=True):
                assert one.tensors().keys() == other.tensors().keys()
                assert all(map(torch.equal, one.tensors().values(), other.tensors().values()))

    # Without its pixels an image is another one.
    dark = [batch | {"pixel_values": torch.zeros_like(batch["pixel_values"])} for batch in batches]
    unlike = before_blocks(whole, model, dark)
    assert not torch.equal(unlike[1][0], expected[1][0])


def seen_by(whole: Any, model: StreamedModel, batches: list[dict[str, Any]]) -> Any:
    """What every block of transformers gives, of each batch, and what the last up_proj reads."""
    given: list[list[Tensor]] = []
    read: list[Tensor] = []

    def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
        given[-1].append((output[0] if isinstance(output, tuple) else output).clone())

    blocks = blocks_of(whole, model)
    for block in blocks:
        block.register_forward_hook(keep)
    blocks[-1].mlp.up_proj.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    for batch in batches:
        given.append([])
        whole.base_model(**batch, use_cache=False)
    return given, torch.cat([x.flatten(0, -2) for x in read]).double()


@pytest.mark.parametrize("family", images.TOKENS)
@torch.no_grad()
def test_samples_with_images_come_behind_windows_of_tokens(family: str, tmp_path: Path) -> None:
    folder = images.make(family, tmp_path)
    samples, model = with_images(folder, family), opened(folder)
    tokens = torch.arange(3, 131).reshape(2, 64)
    given, read = seen_by(read_whole(folder), model, [{"input_ids": tokens}, *samples])
    count = model.adapter.blocks
    skeleton = model.reader.skeleton
    needed = model.adapter.needed_outside(skeleton)
    towers = [key for key, _ in skeleton.model.named_parameters() if not needed(key)]
    assert towers

    boundaries = []
    walk = model.walk(tokens, range(count), None, iter(samples))
    for block in walk:
        # What only images go through is gone before a block is computed.
        held = dict(skeleton.model.named_parameters())
        assert all(held[key].is_meta for key in towers)
        accumulator = HessianAccumulator(block.weight("mlp.up_proj").shape[1], model.device)
        for standing in walk.standings(block, block.inputs):
            if "mlp.up_proj" in standing.shared.linears:
                for x in standing.inputs:
                    accumulator.add(x)
        boundaries.append(walk.boundary())
    torch.testing.assert_close(
        accumulator.hessian().double(), read.T @ read / len(read), rtol=1e-4, atol=1e-5
    )
    names = ["hidden", *(f"{number}:hidden" for number in range(len(samples)))]
    for index, found in enumerate(boundaries):
        assert all(map(torch.equal, map(found.get, names), (each[index] for each in given)))

    for start in range(1, count):
        again = opened(folder).walk(
            tokens, range(start, count), boundaries[start - 1], iter(samples)
        )
        for block in again:
            again.pass_through(block)
            found, wanted = again.boundary(), boundaries[block.index]
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@torch.no_grad()
def test_a_sample_that_the_model_refuses(tmp_path: Path) -> None:
    folder = images.make("gemma3_images", tmp_path)
    sample, *_ = with_images(folder, "gemma3_images")
    lacking = sample | {"input_ids": sample["input_ids"].clamp(max=400)}
    with pytest.raises(InvalidInputError, match=r"^a window with images: is refused: "):
        opened(folder).walk(torch.zeros(0, 64, dtype=torch.int64), range(1), None, [lacking])


def test_pixels_are_freed_when_a_forward_stands_before_the_first_block() -> None:
    own = torch.ones(1, 3, 4, 4)
    samples = [{"input_ids": torch.ones(1, 2, dtype=torch.int64), "pixel_values": own}] * 2
    held: list[Tensor] = []
    for batch in one_by_one(samples, torch.device("cpu"), torch.bfloat16):
        assert all(not pixels.untyped_storage().size() for pixels in held)
        assert batch["pixel_values"].dtype == torch.bfloat16
        held.append(batch["pixel_values"])
    assert all(not pixels.untyped_storage().size() for pixels in held)
    assert own.sum() == 48
