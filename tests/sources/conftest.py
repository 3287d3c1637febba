"""Tiny models as folders, as GGUF files and on a hub that runs here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import answering
from model_hub import Hub, HubHandler

from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.store import LocalStore

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, BLOCKS = 64, 96, 4, 2, 16, 2
CONFIG = {"model_type": "llama", "hidden_size": 8, "torch_dtype": "bfloat16"}
BYTES_PER_ELEMENT = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I32": 4, "F8_E4M3": 1}


def encode(values: np.ndarray, dtype: str) -> bytes:
    """float32 numbers as safetensors bytes; bf16 by truncation, integers as zeros."""
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    if dtype in ("F16", "F32", "F64"):
        return values.astype({"F16": "f2", "F32": "f4", "F64": "f8"}[dtype]).tobytes()
    return bytes(values.size * BYTES_PER_ELEMENT[dtype])


@pytest.fixture
def write_model() -> Callable[..., Path]:
    """Writes a folder with a checkpoint: ``write_model(folder, dtype=…, shards=…, …)``."""

    def write(
        folder: Path,
        *,
        dtype: str = "BF16",
        shards: int = 1,
        config: dict[str, Any] | None = None,
        spoil: dict[str, float] | None = None,
        elements: int = 64,
        seed: int = 0,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
        (folder / "tokenizer.json").write_text('{"model": {}}')
        numbers = np.random.default_rng(seed)
        weight_map = {}
        for shard in range(shards):
            name = (
                "model.safetensors"
                if shards == 1
                else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            )
            with SafetensorsWriter(folder / name) as writer:
                for tensor in (f"blocks.{shard}.a", f"blocks.{shard}.b"):
                    values = numbers.standard_normal(elements).astype(np.float32)
                    if tensor in (spoil or {}):
                        values[elements // 2] = spoil[tensor]
                    writer.add(tensor, dtype, [elements // 8, 8], encode(values, dtype))
                    weight_map[tensor] = name
                writer.finish()
        if shards > 1:
            index = {"metadata": {}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return write


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@contextmanager
def quiet(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Shows no progress."""
    yield lambda count: None


@pytest.fixture
def silent() -> Callable[..., Any]:
    return quiet


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of a query or key projection."""
    rows = weight.shape[0]
    return (
        weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def byte_vocabulary() -> list[str]:
    """The 256 bytes as GPT-2 spells them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(byte) for byte in printable}
    spelled |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [spelled[byte] for byte in range(256)]


@pytest.fixture
def write_gguf() -> Callable[..., dict[str, np.ndarray]]:
    """Writes a tiny GGUF file and returns its weights, dequantized, under Hugging Face's names."""

    def write(
        path: Path,
        architecture: str = "llama",
        *,
        tied: bool = True,
        pre: str = "gpt-2",
        settings: dict[str, Any] | None = None,
        extra_tensors: dict[str, np.ndarray] | None = None,
        leave_out: str | None = None,
        spoil: str | None = None,
    ) -> dict[str, np.ndarray]:
        import gguf

        gemma = architecture == "gemma3"
        tokens = [*byte_vocabulary(), "he", "ll", "hello", "<s>", "</s>"]
        if gemma:
            tokens = [*"\u2581ehlo0124x", "<unk>", "he", "ll", "llo", "hello", "<s>", "</s>"]
        vocabulary = len(tokens)
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_name("tiny")
        writer.add_block_count(BLOCKS)
        writer.add_context_length(128)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(INTERMEDIATE)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(50000.0)
        writer.add_rope_dimension_count(HEAD_DIM)
        writer.add_key_length(HEAD_DIM)
        writer.add_vocab_size(vocabulary)
        writer.add_tokenizer_model("llama" if gemma else "gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([1] * (vocabulary - 2) + [3, 3])
        if gemma:
            writer.add_token_scores([-float(index) for index in range(vocabulary)])
            writer.add_unk_token_id(tokens.index("<unk>"))
            writer.add_add_bos_token(True)
            writer.add_add_space_prefix(False)
            writer.add_sliding_window(32)
        else:
            writer.add_token_merges(["h e", "l l"])
        writer.add_bos_token_id(vocabulary - 2)
        writer.add_eos_token_id(vocabulary - 1)
        for key, value in (settings or {}).items():
            add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
            add[type(value)](key, value)
        numbers = np.random.default_rng(7)
        weights: dict[str, np.ndarray] = {}

        def add(name: str, hf_name: str, shape: tuple[int, ...], kind: str, heads: int = 0) -> None:
            if name == leave_out:
                return
            values = numbers.standard_normal(shape).astype(np.float32)
            if name == spoil:
                values.flat[3] = np.inf
            quantization = gguf.GGMLQuantizationType[kind]
            stored = permute(values, heads) if heads else values
            if gemma and "norm" in name:
                stored = stored + np.float32(1)
            quantized = gguf.quants.quantize(stored, quantization)
            writer.add_tensor(name, quantized, raw_dtype=quantization)
            weights[hf_name] = gguf.quants.dequantize(
                gguf.quants.quantize(values, quantization), quantization
            )
            if gemma and "norm" in name:
                weights[hf_name] = stored - np.float32(1)

        query, key_value = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        reorder = architecture == "llama"
        add("token_embd.weight", "model.embed_tokens.weight", (vocabulary, HIDDEN), "Q8_0")
        add("output_norm.weight", "model.norm.weight", (HIDDEN,), "F32")
        if not tied:
            add("output.weight", "lm_head.weight", (vocabulary, HIDDEN), "F16")
        for index in range(BLOCKS):
            old, new = f"blk.{index}.", f"model.layers.{index}."
            attention, mlp = f"{new}self_attn.", f"{new}mlp."
            add(f"{old}attn_norm.weight", f"{new}input_layernorm.weight", (HIDDEN,), "F32")
            add(
                f"{old}attn_q.weight",
                f"{attention}q_proj.weight",
                (query, HIDDEN),
                "Q4_0",
                HEADS if reorder else 0,
            )
            add(
                f"{old}attn_k.weight",
                f"{attention}k_proj.weight",
                (key_value, HIDDEN),
                "Q8_0",
                KV_HEADS if reorder else 0,
            )
            add(f"{old}attn_v.weight", f"{attention}v_proj.weight", (key_value, HIDDEN), "Q4_1")
            add(f"{old}attn_output.weight", f"{attention}o_proj.weight", (HIDDEN, query), "Q4_0")
            if architecture == "qwen2":
                add(f"{old}attn_q.bias", f"{attention}q_proj.bias", (query,), "F32")
                add(f"{old}attn_k.bias", f"{attention}k_proj.bias", (key_value,), "F32")
                add(f"{old}attn_v.bias", f"{attention}v_proj.bias", (key_value,), "F32")
            if architecture in ("qwen3", "gemma3"):
                add(f"{old}attn_q_norm.weight", f"{attention}q_norm.weight", (HEAD_DIM,), "F32")
                add(f"{old}attn_k_norm.weight", f"{attention}k_norm.weight", (HEAD_DIM,), "F32")
            after_attention = f"{new}post_attention_layernorm.weight"
            before_mlp = f"{new}pre_feedforward_layernorm.weight" if gemma else after_attention
            add(f"{old}ffn_norm.weight", before_mlp, (HIDDEN,), "F32")
            if gemma:
                after_mlp = f"{new}post_feedforward_layernorm.weight"
                add(f"{old}post_attention_norm.weight", after_attention, (HIDDEN,), "F32")
                add(f"{old}post_ffw_norm.weight", after_mlp, (HIDDEN,), "F32")
            add(f"{old}ffn_gate.weight", f"{mlp}gate_proj.weight", (INTERMEDIATE, HIDDEN), "Q4_0")
            add(f"{old}ffn_up.weight", f"{mlp}up_proj.weight", (INTERMEDIATE, HIDDEN), "BF16")
            add(f"{old}ffn_down.weight", f"{mlp}down_proj.weight", (HIDDEN, INTERMEDIATE), "Q4_0")
        for name, tensor in (extra_tensors or {}).items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return weights

    return write


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub, with huggingface_hub pointed at it and at an empty cache."""
    from huggingface_hub import constants

    handler = type("Handler", (HubHandler,), {})
    with answering(handler) as port:
        handler.hub = Hub(url=f"http://127.0.0.1:{port}")
        monkeypatch.setattr(constants, "ENDPOINT", handler.hub.url)
        template = handler.hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield handler.hub
