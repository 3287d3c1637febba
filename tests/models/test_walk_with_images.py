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
from quantlib.models.boundary import Boundary
from quantlib.models.reading import Reader
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
