"""What makes wrappers of the zoo take images: a tokenizer with their tokens, and a processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zoo

_QWEN = {
    500: "<|image_pad|>",
    501: "<|video_pad|>",
    502: "<|vision_start|>",
    503: "<|vision_end|>",
}
_GEMMA = {
    500: "<image_soft_token>",
    503: "<start_of_image>",
    504: "<end_of_image>",
    # vLLM looks these up.
    **{504 + count: "\n" * count for count in range(1, 5)},
}
TOKENS = {"gemma3_images": _GEMMA, "qwen3_vl": _QWEN, "qwen3_5_images": _QWEN}
"""The families, and the tokens that their configs and processors name."""

_PLACEHOLDERS = {"gemma3_images": "<start_of_image>"}


def make(family: str, folder: Path) -> Path:
    """Writes a model of the zoo with all that it takes to give it images.

    Args:
        family: A key of :data:`TOKENS`.
        folder: Where; it need not exist.
    """
    zoo.make(family, folder)
    _processor(family, _tokenizer(family)).save_pretrained(folder)
    return folder


def prompt(family: str) -> str:
    """A text with a place for an image."""
    place = _PLACEHOLDERS.get(family, "<|vision_start|><|image_pad|><|vision_end|>")
    return f"Look: {place} What is it?"


def picture(seed: int = 0, width: int = 70, height: int = 60) -> Any:
    """An image of noise."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _tokenizer(family: str) -> Any:
    """A tokenizer of bytes whose vocabulary is the model's."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"<unused{number}>" for number in range(len(tokens), zoo.VOCABULARY)]
    for number, token in TOKENS[family].items():
        tokens[number] = token
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    named = TOKENS[family].values()
    tokenizer.add_special_tokens([token for token in named if token.strip()])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in named])
    extra: Any = list(_QWEN.values())
    if family == "gemma3_images":
        extra = {
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=extra,
    )


def _processor(family: str, tokenizer: Any) -> Any:
    import transformers

    if family == "gemma3_images":
        images = transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56})
        return transformers.Gemma3Processor(images, tokenizer, image_seq_length=4)
    patches = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    pixels = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    return transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(size=pixels, **patches),
        tokenizer,
        transformers.Qwen3VLVideoProcessor(**patches),
    )
