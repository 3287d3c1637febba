"""Decoders in the layout that transformers writes: blocks under ``model.layers``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlib.checkpoint.checkpoint import CONFIG_NAME, INDEX_NAME, Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.errors import InvalidInputError, Problem
from quantlib.models.base import BaseModelAdapter, LinearGroup, Producer

if TYPE_CHECKING:
    import torch

    from quantlib.models.decoder import DecoderBlock
    from quantlib.models.streamed import StreamedModel

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding's parameters, as transformers 5 or as earlier releases write them."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    parameters.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    parameters["rope_type"] = parameters.get("rope_type", parameters.get("type", "default"))
    return parameters


class BaseHuggingFaceAdapter(BaseModelAdapter):
    """A decoder of blocks with one norm before the attention and one before the MLP.

    This is the layout of Llama and of the families after it. A family with another one overrides
    :meth:`groups`, :meth:`fused` and :meth:`build_block`.
    """

    embedding = "model.embed_tokens"
    final_norm = "model.norm"

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Checks the config.

        Raises:
            InvalidInputError: A field is missing, or asks for what is not supported.
        """
        super().__init__(config)
        problems = [
            Problem(f"config.json: {field}", "is missing or no positive whole number")
            for field in _REQUIRED
            if not isinstance(config.get(field), int) or config[field] < 1
        ]
        rope = rope_parameters(config)
        if rope["rope_type"] not in _ROPE_TYPES:
            problems.append(
                Problem(
                    "config.json: rope_type",
                    f"{rope['rope_type']!r} is not supported",
                    f"supported: {', '.join(_ROPE_TYPES)}",
                )
            )
        problems += [
            Problem("config.json: partial_rotary_factor", f"{factor} is not supported")
            for factor in (config.get("partial_rotary_factor"), rope.get("partial_rotary_factor"))
            if factor not in (None, 1, 1.0)
        ]
        if config.get("hidden_act", "silu") not in _ACTIVATIONS:
            problems.append(
                Problem(
                    "config.json: hidden_act",
                    f"{config['hidden_act']!r} is not supported",
                    f"supported: {', '.join(_ACTIVATIONS)}",
                )
            )
        if problems:
            raise InvalidInputError(problems)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return int(self.config["num_hidden_layers"])

    @property
    def max_sequence_length(self) -> int:
        """Tokens that the model was made for."""
        return int(self.config.get("max_position_embeddings", 2048))

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return int(self.config["num_attention_heads"])

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads."""
        return int(self.config.get("num_key_value_heads") or self.heads)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.heads)

    @property
    def head(self) -> str:
        """Name of the linear that gives the logits; it is never quantized."""
        return "lm_head"

    def block_prefix(self, block: int) -> str:
        """What the names of a block's tensors start with: ``model.layers.3.``."""
        return f"model.layers.{block}."

    def groups(self, block: int) -> tuple[LinearGroup, ...]:
        """The linears of a block, in the order in which their inputs arise."""
        return (
            LinearGroup(
                "attention_input",
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                Producer("input_layernorm", norm=True),
            ),
            LinearGroup(
                "attention_output",
                ("self_attn.o_proj",),
                Producer(
                    "self_attn.v_proj",
                    head_dim=self.head_dim,
                    repeats=self.heads // self.key_value_heads,
                ),
            ),
            LinearGroup(
                "mlp_input",
                ("mlp.gate_proj", "mlp.up_proj"),
                Producer("post_attention_layernorm", norm=True),
            ),
            LinearGroup("mlp_output", ("mlp.down_proj",), Producer("mlp.up_proj")),
        )

    def fused(self, block: int) -> Mapping[str, tuple[str, ...]]:
        """The linears that vLLM fuses, by the name that it gives the fused one or all of them."""
        attention, _, mlp, _ = self.groups(block)
        return {"self_attn.qkv_proj": attention.linears, "mlp.gate_up_proj": mlp.linears}

    def sliding_window(self, block: int) -> int | None:
        """Tokens that a block's attention reaches back, or None for all of them."""
        window = self.config.get("sliding_window")
        kinds = self.config.get("layer_types")
        if kinds is not None and kinds[block] != "sliding_attention":
            return None
        return None if window is None else int(window)

    def block_shapes(self, block: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors that a block has to have, by name within the block."""
        hidden, intermediate = self.config["hidden_size"], self.config["intermediate_size"]
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        shapes = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        return {f"{name}.weight": shape for name, shape in shapes.items()}

    def problems(self, checkpoint: Checkpoint) -> list[Problem]:
        """What is missing or misshapen in a checkpoint of this family."""
        hidden = self.config["hidden_size"]
        expected: dict[str, tuple[int, ...]] = {
            f"{self.embedding}.weight": (self.config["vocab_size"], hidden),
            f"{self.final_norm}.weight": (hidden,),
        }
        if not self.config.get("tie_word_embeddings", False):
            expected[f"{self.head}.weight"] = (self.config["vocab_size"], hidden)
        for block in range(self.blocks):
            prefix = self.block_prefix(block)
            expected |= {prefix + name: shape for name, shape in self.block_shapes(block).items()}
        problems = []
        for name, shape in expected.items():
            info = checkpoint.tensors.get(name)
            if info is None:
                problems.append(Problem(name, "the checkpoint has no such tensor"))
            elif info.shape != shape:
                problems.append(
                    Problem(name, f"has shape {list(info.shape)}; the config says {list(shape)}")
                )
        return problems

    def load_model(self, checkpoint: Checkpoint, device: torch.device) -> StreamedModel:
        """Opens a model whose weights are read block by block.

        Args:
            checkpoint: The unquantized checkpoint.
            device: Where blocks are computed.
        """
        from quantlib.models.streamed import StreamedModel

        return StreamedModel(self, checkpoint, device)

    def build_block(self, model: StreamedModel, block: int) -> DecoderBlock:
        """Reads one block and makes it computable."""
        from quantlib.models.decoder import DecoderBlock

        prefix = self.block_prefix(block)
        return DecoderBlock(
            index=block,
            groups=self.groups(block),
            tensors={
                name.removeprefix(prefix): model.tensor(name)
                for name in self.block_tensors(model.checkpoint, block)
            },
            dtype=model.dtype,
            rotary=model.rotary,
            heads=self.heads,
            key_value_heads=self.key_value_heads,
            head_dim=self.head_dim,
            norm_eps=float(self.config.get("rms_norm_eps", 1e-6)),
            activation=self.config.get("hidden_act", "silu"),
            sliding_window=self.sliding_window(block),
        )

    def save_model(
        self,
        checkpoint: Checkpoint,
        output: Path,
        parts: Mapping[str, Mapping[str, TensorInfo]],
        rest_name: str,
        quantization_config: Mapping[str, Any],
    ) -> str:
        """Writes what makes quantized parts a checkpoint: the rest, the index and the config.

        Args:
            checkpoint: The original.
            output: The folder to write to.
            parts: The headers of the safetensors files that hold whole blocks, by file name. The
                files are not touched.
            rest_name: Name of the file for the tensors of all other blocks and those outside of
                blocks.
            quantization_config: What vLLM and transformers read to load the parts.

        Returns:
            The hexadecimal sha256 of the file ``rest_name``.
        """
        placed = {tensor: part for part, tensors in parts.items() for tensor in tensors}
        prefixes = tuple(
            self.block_prefix(block)
            for block in range(self.blocks)
            if any(tensor.startswith(self.block_prefix(block)) for tensor in placed)
        )
        total = sum(info.bytes for tensors in parts.values() for info in tensors.values())
        with SafetensorsWriter(output / rest_name) as writer:
            for name, info in checkpoint.tensors.items():
                if not name.startswith(prefixes):
                    writer.add(name, info.dtype, info.shape, checkpoint.read(name))
                    placed[name] = rest_name
                    total += info.bytes
            digest, _ = writer.finish()
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        _write_json(output / INDEX_NAME, index)
        config = dict(self.config) | {"quantization_config": dict(quantization_config)}
        _write_json(output / CONFIG_NAME, config)
        return digest


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
