"""What the header of a GGUF file says of a model: its config, and what its tensors become.

A header that says anything this module does not know is refused: what is dropped silently would
change what the model computes.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantlib.errors import InvalidInputError, Problem
from quantlib.runtime.distribution import pip_install
from quantlib.sources.gguf_header import GgufArray, GgufHeader, read_gguf_header

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
"""The class of the model by GGUF architecture."""

_MODEL_TYPES = {"gemma3": "gemma3_text"}
"""The ``model_type`` where it is not the architecture."""

_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_KNOWN_KEYS = {
    *_SIZES,
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
}
_NEUTRAL = {
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "rope.scale_linear": 1.0,
    "attention.sliding_window": 0,
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
}
"""Keys that change nothing when they have this value, and what the model computes otherwise."""

_OF_GEMMA3 = {"attention.sliding_window_pattern": 6, "rope.freq_base_swa": 10000.0}
"""What llama.cpp takes for every Gemma 3, and newer files state."""

_PRE_TOKENIZERS = (
    "dbrx",
    "deepseek-r1-qwen",
    "gpt-2",
    "llama-bpe",
    "llama-v3",
    "llama3",
    "qwen2",
    "smaug-bpe",
    "smollm",
    "tekken",
)
_TOO_LARGE = 1 << 31
"""No size of a model is of that order; a corrupt one would be counted up to."""

_ORIGINAL = "take the model's safetensors release"


@dataclass(frozen=True)
class Target:
    """What a tensor becomes.

    Attributes:
        name: Its name in Hugging Face's layout.
        shape: The shape that the metadata implies.
        heads: How many heads its rows are reordered in; 0 for none.
        added: What llama.cpp's converter adds to its numbers.
    """

    name: str
    shape: tuple[int, ...]
    heads: int = 0
    added: float = 0.0


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file that can be converted.

    Attributes:
        header: Its header.
        config: The ``config.json`` of the model.
        targets: What each of its tensors becomes, by the tensor's name in the file.
    """

    header: GgufHeader
    config: Mapping[str, Any]
    targets: Mapping[str, Target]


def open_gguf(path: Path) -> GgufModel:
    """Reads and checks the header of a GGUF file.

    Raises:
        InvalidInputError: The file cannot be converted; everything that its header shows at once.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InvalidInputError.one(str(path), "needs the gguf package", pip_install("gguf"))
    header = read_gguf_header(path)
    config = _config(header)
    targets = _targets(config)
    if problems := _tensor_problems(header, targets) + _tokenizer_problems(header):
        raise InvalidInputError(problems)
    return GgufModel(header, config, targets)


def gguf_problems(path: Path) -> list[Problem]:
    """Everything wrong with a GGUF file that its header shows."""
    try:
        open_gguf(path)
    except InvalidInputError as error:
        return list(error.problems)
    return []


def _config(header: GgufHeader) -> dict[str, Any]:
    metadata, where = header.metadata, str(header.path)
    architecture = metadata.get("general.architecture")
    if metadata.get("split.count", 1) not in (0, 1):
        raise InvalidInputError.one(
            where,
            f"is one of {metadata['split.count']} parts of a model",
            "join them with llama-gguf-split --merge",
        )
    if architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise InvalidInputError.one(
            where, f"unsupported architecture {architecture!r}; supported: {known}", _ORIGINAL
        )
    prefix = f"{architecture}."
    stated = {
        key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)
    }
    problems = _metadata_problems(where, prefix, stated)
    problems += [
        Problem(where, f"{key} is {metadata[key]!r}, no token: corrupt", _ORIGINAL)
        for key in _TOKENS.values()
        if key in metadata and type(metadata[key]) is not int
    ]
    if not problems and stated["block_count"] > len(header.tensors):
        what = f"has {len(header.tensors)} tensors for {stated['block_count']} blocks: corrupt"
        problems = [Problem(where, what, _ORIGINAL)]
    if problems:
        raise InvalidInputError(problems)
    heads = stated["attention.head_count"]
    head_dim = stated.get("attention.key_length", stated["embedding_length"] // heads)
    tokens = metadata.get("tokenizer.ggml.tokens")
    config = {
        "architectures": [_ARCHITECTURES[architecture]],
        "model_type": _MODEL_TYPES.get(architecture, architecture),
        "dtype": "bfloat16",
        **(_gemma3(stated, head_dim) if architecture == "gemma3" else {"hidden_act": "silu"}),
        **{name: stated[key] for key, name in _SIZES.items()},
        "num_key_value_heads": stated.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": stated["attention.layer_norm_rms_epsilon"],
        "rope_theta": stated.get("rope.freq_base", 10000.0),
        "vocab_size": stated.get("vocab_size", getattr(tokens, "length", 0)),
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    config |= {name: metadata.get(key) for name, key in _TOKENS.items()}
    if stated.get("rope.dimension_count", head_dim) != head_dim or head_dim % 2:
        raise InvalidInputError.one(
            where,
            f"unsupported: rotates {stated.get('rope.dimension_count')} of a head's {head_dim} "
            "dimensions",
            _ORIGINAL,
        )
    return config


def _gemma3(stated: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """What only configs of Gemma 3 say. Its 27B scales otherwise; its rotary scaling is refused."""
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": head_dim,
        "rope_local_base_freq": _OF_GEMMA3["rope.freq_base_swa"],
        "sliding_window": stated["attention.sliding_window"],
    }


def _targets(config: Mapping[str, Any]) -> dict[str, Target]:
    """What every tensor of the file becomes, by its name there."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim, model_type = config["head_dim"], config["model_type"]
    q_rows, kv_rows = heads * head_dim, kv_heads * head_dim
    reordered = model_type == "llama"
    block = {
        "attn_norm.weight": Target("input_layernorm.weight", (hidden,)),
        "attn_q.weight": Target(
            "self_attn.q_proj.weight", (q_rows, hidden), heads if reordered else 0
        ),
        "attn_k.weight": Target(
            "self_attn.k_proj.weight", (kv_rows, hidden), kv_heads if reordered else 0
        ),
        "attn_v.weight": Target("self_attn.v_proj.weight", (kv_rows, hidden)),
        "attn_output.weight": Target("self_attn.o_proj.weight", (hidden, q_rows)),
        "ffn_norm.weight": Target("post_attention_layernorm.weight", (hidden,)),
        "ffn_gate.weight": Target("mlp.gate_proj.weight", (intermediate, hidden)),
        "ffn_up.weight": Target("mlp.up_proj.weight", (intermediate, hidden)),
        "ffn_down.weight": Target("mlp.down_proj.weight", (hidden, intermediate)),
    }
    if model_type == "qwen2":
        block |= {
            "attn_q.bias": Target("self_attn.q_proj.bias", (q_rows,)),
            "attn_k.bias": Target("self_attn.k_proj.bias", (kv_rows,)),
            "attn_v.bias": Target("self_attn.v_proj.bias", (kv_rows,)),
        }
    added = 0.0
    if model_type in ("qwen3", "gemma3_text"):
        block |= {
            "attn_q_norm.weight": Target("self_attn.q_norm.weight", (head_dim,)),
            "attn_k_norm.weight": Target("self_attn.k_norm.weight", (head_dim,)),
        }
    if model_type == "gemma3_text":
        added = 1.0
        for name, its_name in (
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_norm", "pre_feedforward_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ):
            block[f"{name}.weight"] = Target(f"{its_name}.weight", (hidden,))
    targets = {
        "token_embd.weight": Target("model.embed_tokens.weight", (config["vocab_size"], hidden)),
        "output_norm.weight": Target("model.norm.weight", (hidden,), added=added),
    }
    if not config["tie_word_embeddings"]:
        targets["output.weight"] = Target("lm_head.weight", (config["vocab_size"], hidden))
    for index in range(config["num_hidden_layers"]):
        for name, target in block.items():
            targets[f"blk.{index}.{name}"] = Target(
                f"model.layers.{index}.{target.name}",
                target.shape,
                target.heads,
                added if "norm" in name else 0.0,
            )
    return targets


def _metadata_problems(where: str, prefix: str, stated: Mapping[str, Any]) -> list[Problem]:
    problems = []
    needed, neutral = tuple(_SIZES), _NEUTRAL
    if prefix == "gemma3.":
        needed, neutral = (*_SIZES, "attention.sliding_window"), _NEUTRAL | _OF_GEMMA3
    for key in (*needed, "attention.head_count_kv", "attention.key_length", "vocab_size"):
        if key not in stated:
            if key in needed:
                problems.append(Problem(where, f"states no {prefix}{key}: corrupt", _ORIGINAL))
        elif type(stated[key]) is not int or not 1 <= stated[key] < _TOO_LARGE:
            what = (
                "one number for each block" if isinstance(stated[key], GgufArray) else stated[key]
            )
            problems.append(Problem(where, f"unsupported {prefix}{key}: {what}", _ORIGINAL))
    if "attention.layer_norm_rms_epsilon" not in stated:
        problems.append(Problem(where, f"states no {prefix}attention.layer_norm_rms_epsilon"))
    for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base"):
        value = stated.get(key, 1.0)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            problems.append(Problem(where, f"unsupported {prefix}{key}: {value}", _ORIGINAL))
    for key, value in stated.items():
        if key in {*needed, *_KNOWN_KEYS} or (key in neutral and value == neutral[key]):
            continue
        problems.append(Problem(where, f"unsupported setting {prefix}{key} = {value}", _ORIGINAL))
    return problems


def _tensor_problems(header: GgufHeader, targets: Mapping[str, Target]) -> list[Problem]:
    where = str(header.path)
    problems = []
    if "rope_freqs.weight" in header.tensors:
        problems.append(
            Problem(
                where, "scales its rotary frequencies (rope_freqs.weight), unsupported", _ORIGINAL
            )
        )
    known = {*targets, "rope_freqs.weight"}
    unknown = [name for name in header.tensors if name not in known]
    missing = [name for name in targets if name not in header.tensors]
    for names, what in ((unknown, "unsupported tensors"), (missing, "missing tensors")):
        if names:
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            problems.append(Problem(where, f"{what}: {listed}", _ORIGINAL))
    undecodable = set()
    for name, tensor in header.tensors.items():
        if name not in targets:
            continue
        if tensor.shape != targets[name].shape:
            expected = list(targets[name].shape)
            problems.append(
                Problem(
                    where, f"{name} is {list(tensor.shape)}, not {expected}: corrupt", _ORIGINAL
                )
            )
        if not _can_dequantize(tensor.type):
            undecodable.add(tensor.type_name)
    problems += [
        Problem(where, f"holds {name} tensors, which cannot be read", _ORIGINAL)
        for name in sorted(undecodable)
    ]
    return problems


def _can_dequantize(kind: int) -> bool:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    quantization = GGMLQuantizationType(kind)
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[quantization][1]), np.uint8), quantization)
    except NotImplementedError:  # how gguf says that it has no routine for the type
        return False
    return True


def _tokenizer_problems(header: GgufHeader) -> list[Problem]:
    where, metadata = str(header.path), header.metadata
    model = metadata.get("tokenizer.ggml.model")
    if model == "llama":
        return []
    if model != "gpt2":
        return [Problem(where, f"unsupported tokenizer {model!r}", _ORIGINAL)]
    pre = metadata.get("tokenizer.ggml.pre")
    if pre in _PRE_TOKENIZERS:
        return []
    return [
        Problem(
            where,
            f"unsupported tokenizer.ggml.pre {pre!r}; supported: {', '.join(_PRE_TOKENIZERS)}",
            _ORIGINAL,
        )
    ]
