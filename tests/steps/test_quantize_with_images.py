"""A wrapper that is calibrated on rows with images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from walking import opened
from whole import blocks_of, read_whole

import images
from quantlib.checkpoint.source import ReceiptSource
from quantlib.checkpoint.tensors import read_tensors
from quantlib.recipe import Recipe
from quantlib.report.summary import step_summary
from quantlib.steps.calibrate import hidden_name
from quantlib.steps.plan import parse_range
from quantlib.steps.quantize import BLOCKS_NAME
from quantlib.store import LocalStore

pytest.importorskip("torchvision")  # which the processors of images need

RunSteps = Callable[..., Any]
MakeRecipe = Callable[..., Recipe]


def settings(text: Path, **changes: Any) -> dict[str, Any]:
    """All rows with images, and all words, in three ranges of as many blocks."""
    calibration = {"dataset": str(text), "num_samples": 18, "sequence_length": 64}
    return {"num_ranges": 3, "calibration": calibration} | changes


def tensors_of(store: LocalStore, made: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for receipt in made.quantized:
        found |= load_file(store.local_path(receipt.path(BLOCKS_NAME)))
    return found


def processed(folder: Path, text: Path) -> list[dict[str, Any]]:
    """What transformers' own processor makes of the conversations of a text, by their words."""
    from transformers import AutoProcessor

    processor, found = AutoProcessor.from_pretrained(folder), []
    for line in text.read_text().splitlines()[:-1]:
        asked, answer = json.loads(line)["messages"]
        said = [{"type": "text", "text": answer["content"]}]
        place, words = asked["content"]
        shown = {"type": "image", "image": Image.open(text.parent / place["image"])}
        messages = [
            {"role": "user", "content": [shown, words]},
            {"role": "assistant", "content": said},
        ]
        made = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt"
        )
        found.append(dict(made))
    return found


@pytest.mark.usefixtures("float32_products")
@pytest.mark.parametrize("family", ["gemma3_images", "qwen3_vl"])
def test_hidden_states_are_those_of_the_wrappers_own_forward(
    family: str,
    store: LocalStore,
    small_recipe: MakeRecipe,
    run_steps: RunSteps,
    tmp_path: Path,
) -> None:
    folder = images.make(family, tmp_path / "model", chat_template=True)
    text = images.write_text(tmp_path / "text")
    made = run_steps(store, small_recipe(**settings(text)), folder)
    said = made.calibration.facts["text"]
    assert (said["samples"], said["with_images"]) == (18, 10)
    assert said["read"]["used"] == {"messages with images": 10, "text": 1}
    assert "8 windows of 64, and 10 rows with images" in step_summary(store, made.calibration)

    last, _ = parse_range(made.plan.facts["ranges"][-1])
    boundary = read_tensors(ReceiptSource(store, made.calibration), hidden_name(last))
    assert boundary["hidden"].shape[:2] == (8, 64)
    whole = read_whole(folder)
    given: list[Any] = []
    streamed = opened(folder)
    block = blocks_of(whole, streamed)[last - 1]
    block.register_forward_hook(lambda *hooked: given.append(hooked[2]))
    samples = processed(folder, text)
    with torch.no_grad():
        for sample in samples:
            cut = sample["input_ids"].shape
            whole.base_model(
                **{
                    name: value[:, :64] if value.shape == cut else value
                    for name, value in sample.items()
                },
                use_cache=False,
            )
    assert said["tokens"] == 8 * 64 + sum(min(64, s["input_ids"].shape[1]) for s in samples)
    for number, output in enumerate(given):
        state = output[0] if isinstance(output, tuple) else output
        torch.testing.assert_close(boundary[f"{number}:hidden"], state, rtol=2**-6, atol=2**-6)


def test_images_change_what_comes_out(
    store: LocalStore, small_recipe: MakeRecipe, run_steps: RunSteps, tmp_path: Path
) -> None:
    folder = images.make("qwen3_vl", tmp_path / "model", chat_template=True)
    text = images.write_text(tmp_path / "shown")
    seen = tensors_of(store, run_steps(store, small_recipe(**settings(text)), folder))
    # The same tokens, but all of the images black.
    dark = images.write_text(tmp_path / "dark")
    for path in (tmp_path / "dark" / "pictures").iterdir():
        Image.new("RGB", Image.open(path).size).save(path)
    unseen = tensors_of(store, run_steps(store, small_recipe(**settings(dark)), folder))
    words = images.write_text(tmp_path / "words", shown=False)
    recipe = settings(words)
    recipe["calibration"]["num_samples"] = 8
    unshown = tensors_of(store, run_steps(store, small_recipe(**recipe), folder))
    (name,) = (name for name in seen if name.endswith("layers.1.mlp.up_proj.qweight"))
    for other in (unseen, unshown):
        assert seen.keys() == other.keys()
        assert not torch.equal(seen[name], other[name])
    again = images.write_text(tmp_path / "again")
    same = run_steps(store, small_recipe(**settings(again)), folder)
    assert all(torch.equal(seen[each], tensor) for each, tensor in tensors_of(store, same).items())


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_what_looks_at_tokens_takes_samples_of_every_length(
    method: str, store: LocalStore, small_recipe: MakeRecipe, run_steps: RunSteps, tmp_path: Path
) -> None:
    folder = images.make("gemma3_images", tmp_path / "model", chat_template=True)
    changes: dict[str, Any] = {"quantization": {"method": method}}
    if method == "gptq":
        changes["outlier_suppression"] = {"method": "smooth_quant", "options": {"alpha": "auto"}}
    text = images.write_text(tmp_path / "text")
    made = run_steps(store, small_recipe(**settings(text, **changes)), folder)
    assert all(torch.isfinite(t).all() for t in tensors_of(store, made).values())
