"""Tiny random models of many families, as the hub has them.

Every kind of layer that a family has occurs, and tensors have the names and shapes of the hub's.
Widths are those that kernels take (hidden states of 256), so that the same models can be quantized
and served.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

from families import FAMILIES, HUB_FIELDS, STACKED, VOCABULARY

__all__ = [
    "FAMILIES",
    "HUB_FIELDS",
    "VOCABULARY",
    "is_wrapper",
    "make",
    "name_towers_as_on_hub",
    "write_tokenizer",
]

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

_TOWERS = ("clip_vision_model", "siglip_vision_model")


def is_wrapper(name: str) -> bool:
    """Whether a family's models take images too."""
    return "text_config" in FAMILIES[name]


def make(name: str, folder: Path, *, seed: int = 0, chat_template: bool = False) -> Path:
    """Writes a random checkpoint in bfloat16 with a tokenizer.

    Args:
        name: A key of :data:`FAMILIES`.
        folder: Where; it need not exist.
        seed: Of its weights.
        chat_template: Whether its tokenizer has one.

    Returns:
        The folder.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    auto = AutoModelForImageTextToText if is_wrapper(name) else AutoModelForCausalLM
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**copy.deepcopy(FAMILIES[name]))
    model = auto.from_config(config, dtype=torch.float32)
    _randomize(model, seed)
    model.config.dtype = torch.bfloat16
    # transformers gives tensors the names and shapes of the hub again.
    model.to(torch.bfloat16).save_pretrained(folder, save_original_format=name not in STACKED)
    if name in HUB_FIELDS:
        path = folder / "config.json"
        written = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(written | HUB_FIELDS[name], indent=2), encoding="utf-8")
    name_towers_as_on_hub(folder)
    write_tokenizer(folder, chat_template=chat_template)
    return folder


def name_towers_as_on_hub(folder: Path) -> None:
    """Gives SigLIP and CLIP in a wrapper the hub's names, which transformers reads and forgets."""
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    path = folder / "model.safetensors"
    if (config.get("vision_config") or {}).get("model_type") not in _TOWERS:
        return
    written = r"vision_tower\.(?!vision_model\.)"
    tensors = {
        re.sub(written, "vision_tower.vision_model.", name): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})


def _randomize(model: Any, seed: int) -> None:
    """Gives biases, norms and corrections of routers values that hide no mistake with them."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: torch.Tensor, deviation: float) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator) * deviation

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if parameter.dim() >= 2:
                embeds = "embed" in name
                parameter.copy_(noise(parameter, 0.5 if embeds else parameter.shape[-1] ** -0.5))
            elif "bias" in last or last == "sinks":
                parameter.copy_(noise(parameter, 0.1))
            elif "norm" in name:
                parameter.add_(noise(parameter, 0.1))
        for name, buffer in model.named_buffers():
            if name.endswith(("correction_bias", "expert_bias")):
                buffer.copy_(noise(buffer, 0.1))


def write_tokenizer(folder: Path, *, chat_template: bool = False) -> None:
    """Writes a tokenizer of bytes: 259 of the vocabulary's tokens, BOS before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<pad>", "<s>", "</s>", *alphabet]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=_CHAT_TEMPLATE if chat_template else None,
    ).save_pretrained(folder)
