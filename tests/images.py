"""What makes wrappers of the zoo take images: a tokenizer with their tokens, and a processor."""

from __future__ import annotations

import json
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
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PLACE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ eos_token }}{% endfor %}"
)


def make(family: str, folder: Path, *, chat_template: bool = False) -> Path:
    """Writes a model of the zoo with all that it takes to give it images.

    Args:
        family: A key of :data:`TOKENS`.
        folder: Where; it need not exist.
        chat_template: Whether it has one, which says where images go.
    """
    zoo.make(family, folder)
    _processor(family, _tokenizer(family)).save_pretrained(folder)
    if chat_template:
        text = _TEMPLATE.replace("PLACE", place_of(family))
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    return folder


def place_of(family: str) -> str:
    """What stands in a text where an image goes."""
    return _PLACEHOLDERS.get(family, "<|vision_start|><|image_pad|><|vision_end|>")


def prompt(family: str) -> str:
    """A text with a place for an image."""
    return f"Look: {place_of(family)} What is it?"


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


def write_text(folder: Path, count: int = 10, *, shown: bool = True) -> Path:
    """Writes conversations about images that lie beside them, and a row of words alone.

    Args:
        folder: Where.
        count: How many conversations.
        shown: Whether they have their images, or words in their places.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        picture(number, 56 + 9 * number, 60).save(folder / "pictures" / f"{number}.png")
        place = {"type": "image", "image": f"pictures/{number}.png"}
        words = {"type": "text", "text": f"What is picture {number}?"}
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": [place, words] if shown else [words]},
                    {"role": "assistant", "content": "It is noise. " * (1 + number % 3)},
                ]
            }
        )
    rows.append({"text": "Words without any picture. " * 20})
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
