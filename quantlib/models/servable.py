"""A config as vLLM takes it, where it came in another dress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.quantized import stated_quantization, without_quantization

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def servable_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config without what says nothing, and with the dtype of the weights.

    A ``quantization_config`` that names no method goes, and a config that does not say in which
    dtype the model is gets that of most of its numbers, which is also what vLLM takes then.
    """
    config = dict(checkpoint.config)
    if stated_quantization(config) is None:
        config = without_quantization(config)
    if not (config.get("dtype") or config.get("torch_dtype")):
        stored: Counter[str] = Counter()
        for info in checkpoint.tensors.values():
            stored[info.dtype] += info.bytes
        if stored and (most := stored.most_common(1)[0][0]) in _DTYPES:
            config["torch_dtype"] = _DTYPES[most]
    return config


def with_causal_architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the architecture that gives logits, where it names the base model or none.

    vLLM would serve the base model for embeddings, and refuses a config that names none. Imports
    transformers where it has to look the name up.
    """
    named = config.get("architectures") or [None]
    if isinstance(named[0], str) and named[0].endswith("ForCausalLM"):
        return dict(config)
    from transformers.models.auto import modeling_auto

    model_type = config["model_type"]
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if causal is None or named[0] not in (None, modeling_auto.MODEL_MAPPING_NAMES.get(model_type)):
        return dict(config)
    return dict(config) | {"architectures": [causal]}


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model whose head is a tensor of its own, for all who read it.

    vLLM looks at the language model's part, transformers at the whole.
    """
    found = dict(config) | {"tie_word_embeddings": False}
    if isinstance(text := config.get("text_config"), Mapping):
        found["text_config"] = dict(text) | {"tie_word_embeddings": False}
    return found
