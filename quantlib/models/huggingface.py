"""Decoders in the layout that transformers writes: blocks under ``model.layers``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from quantlib.checkpoint.checkpoint import CONFIG_NAME, INDEX_NAME, Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.index import listed
from quantlib.checkpoint.remote_code import without_code
from quantlib.errors import InvalidInputError, Problem
from quantlib.models.base import BaseModelAdapter, LinearGroup, Producer
from quantlib.models.config_fields import field_problems
from quantlib.models.rope import rope_parameters, rope_problems
from quantlib.models.servable import with_causal_architecture
from quantlib.models.settings import BlockSettings, Norms

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quantlib.models.decoder import DecoderBlock
    from quantlib.models.streamed import StreamedModel

_ROPE_FIELDS = ("rope_parameters", "rope_scaling")
_LAYER_TYPES = ("full_attention", "sliding_attention")
_IGNORED_TENSORS = "rotary_emb.inv_freq"
"""Old checkpoints of Llama hold the rotary embedding's frequencies; the config says the same."""


_MOST_LINES = 3


class BaseHuggingFaceAdapter(BaseModelAdapter):
    """A decoder of blocks with one norm before the attention and one before the MLP.

    This is the layout of Llama and of the families after it. A family with another one states what
    differs in the attributes below, and overrides :meth:`groups`, :meth:`fused`, the methods that
    give shapes, and :meth:`block_settings`.

    Attributes:
        required: Fields of the config that have to be positive whole numbers.
        required_numbers: Fields that have to be positive numbers.
        optional: Fields that have to be positive whole numbers where they are given.
        optional_numbers: Fields that have to be positive numbers where they are given.
        known: Fields that the family knows besides those that the table lists for its type.
        rejected: Fields that have to be absent, null or false, since what they ask for is not
            computed.
        activation_field: The field that names the MLP's activation.
        activations: The activations that the family may have.
        rope_types: The types of rotary embedding that it may have.
        partial_rotary: Whether it may rotate a part of each head only.
        tied_by_default: Whether a config that does not say so ties the embeddings.
        always_biased: Linears that have a bias whatever the config says.
        norms: The norms on the residual stream.
    """

    embedding = "model.embed_tokens"
    final_norm = "model.norm"
    required: ClassVar[tuple[str, ...]] = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
    )
    required_numbers: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = (
        "head_dim",
        "max_position_embeddings",
        "num_key_value_heads",
    )
    optional_numbers: ClassVar[tuple[str, ...]] = ("rms_norm_eps",)
    known: ClassVar[tuple[str, ...]] = ()
    rejected: ClassVar[tuple[str, ...]] = ("use_bidirectional_attention", "attention_sinks")
    activation_field: ClassVar[str] = "hidden_act"
    activations: ClassVar[tuple[str, ...]] = ("silu", "gelu", "gelu_pytorch_tanh")
    rope_types: ClassVar[tuple[str, ...]] = ("default", "linear", "llama3", "yarn")
    partial_rotary: ClassVar[bool] = False
    tied_by_default: ClassVar[bool] = False
    always_biased: ClassVar[tuple[str, ...]] = ()
    norms: ClassVar[Norms] = Norms()

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Checks the config.

        Raises:
            InvalidInputError: A field is missing, or asks for what is not supported.
        """
        super().__init__(config)
        problems = self._config_problems()
        if problems:
            raise InvalidInputError(problems)

    def _config_problems(self) -> list[Problem]:
        problems = [
            *self._number_problems(self.required, whole=True, needed=True),
            *self._number_problems(self.required_numbers, whole=False, needed=True),
            *self._number_problems(self.optional, whole=True, needed=False),
            *self._number_problems(self.optional_numbers, whole=False, needed=False),
        ]
        head_dim = None if problems else self.head_dim
        problems += [
            Problem(f"config.json: {field}", f"{self.config[field]!r} is not supported")
            for field in self.rejected
            if self.config.get(field) not in (None, False)
        ]
        asked = (*self.required, *self.required_numbers, *self.optional, *self.optional_numbers)
        problems += field_problems(self.config, (*asked, *self.rejected, *self.known))
        if self.activation not in self.activations:
            problems.append(
                Problem(
                    f"config.json: {self.activation_field}",
                    f"{self.activation!r} is not supported",
                    f"supported: {', '.join(self.activations)}",
                )
            )
        if of_rope := [
            Problem(f"config.json: {field}", "is no mapping")
            for field in _ROPE_FIELDS
            if not isinstance(self.config.get(field) or {}, dict)
        ]:
            return problems + of_rope
        if not _is_positive(self.config.get("num_hidden_layers"), whole=True):
            return problems
        kinds = self.layer_types
        if kinds is not None and (
            len(kinds) != self.blocks or not set(kinds).issubset(_LAYER_TYPES)
        ):
            problems.append(
                Problem(
                    "config.json: layer_types",
                    f"does not give each of {self.blocks} blocks one of {', '.join(_LAYER_TYPES)}",
                )
            )
            return problems
        of_rope = [
            problem
            for block in range(self.blocks)
            for problem in rope_problems(
                self.rope_parameters(block),
                self.rope_types,
                partial=self.partial_rotary,
                head_dim=head_dim,
            )
        ]
        return problems + of_rope

    def _number_problems(
        self, fields: Sequence[str], *, whole: bool, needed: bool
    ) -> Iterator[Problem]:
        kind = "whole number" if whole else "number"
        for field in fields:
            value = self.config.get(field)
            if not _is_positive(value, whole=whole) and (needed or value is not None):
                said = "is missing or" if value is None else f"{value!r} is"
                yield Problem(f"config.json: {field}", f"{said} no positive {kind}")

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return int(self.config["num_hidden_layers"])

    @property
    def max_sequence_length(self) -> int:
        """Tokens that the model was made for."""
        return int(self.config.get("max_position_embeddings") or 2048)

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
    def activation(self) -> str:
        """Name of the MLP's activation."""
        return str(self.config.get(self.activation_field, "silu"))

    @property
    def layer_types(self) -> Sequence[str] | None:
        """Full or sliding attention, of each block; None where the config does not say."""
        return self.config.get("layer_types")

    @property
    def head(self) -> str:
        """Name of the linear that gives the logits; it is never quantized."""
        return "lm_head"

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return bool(self.config.get("tie_word_embeddings", self.tied_by_default))

    def block_prefix(self, block: int) -> str:
        """What the names of a block's tensors start with: ``model.layers.3.``."""
        return f"model.layers.{block}."

    def groups(self, block: int) -> tuple[LinearGroup, ...]:
        """The linears of a block, in the order in which their inputs arise."""
        return (
            LinearGroup(
                "attention_input",
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                self._norm_producer(self.norms.before_attention),
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
                self._norm_producer(self.norms.before_mlp),
            ),
            LinearGroup("mlp_output", ("mlp.down_proj",), Producer("mlp.up_proj")),
        )

    @staticmethod
    def _norm_producer(name: str | None) -> Producer | None:
        return None if name is None else Producer(name, norm=True)

    def fused(self, block: int) -> Mapping[str, tuple[str, ...]]:
        """The linears that vLLM fuses, by the name that it gives the fused one or all of them."""
        attention, _, mlp, _ = self.groups(block)
        return {"self_attn.qkv_proj": attention.linears, "mlp.gate_up_proj": mlp.linears}

    def sliding_window(self, block: int) -> int | None:
        """Tokens that a block's attention reaches back, or None for all of them."""
        window, kinds = self.config.get("sliding_window"), self.layer_types
        if kinds is not None and kinds[block] != "sliding_attention":
            return None
        return None if window is None else int(window)

    def rope_parameters(self, block: int) -> dict[str, Any]:
        """The parameters of a block's rotary embedding, by transformers' names."""
        return rope_parameters(self.config)

    def scale_embeddings(self, embedded: Tensor) -> Tensor:
        """The first block's input from the rows of the embedding, which it mostly is."""
        return embedded

    def linear_shapes(self, block: int) -> dict[str, tuple[int, int]]:
        """``(out_features, in_features)`` of a block's linears, by name within the block."""
        hidden, intermediate = self.config["hidden_size"], self.config["intermediate_size"]
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }

    def norm_widths(self) -> dict[str, int]:
        """Channels of a block's norms, by name within the block."""
        return dict.fromkeys(self.norms.names, self.config["hidden_size"])

    def head_norm_widths(self) -> dict[str, int]:
        """The norms of queries and keys, head by head, in the families that have them."""
        return dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), self.head_dim)

    def biased(self, block: int) -> tuple[str, ...]:
        """The linears of a block that have a bias, by name within the block."""
        starts = [
            start
            for start, field in (("self_attn.", "attention_bias"), ("mlp.", "mlp_bias"))
            if self.config.get(field, False)
        ]
        return tuple(
            name
            for name in self.linear_shapes(block)
            if name in self.always_biased or name.startswith(tuple(starts))
        )

    def block_shapes(self, block: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors of a block, by name within the block."""
        linears = self.linear_shapes(block)
        shapes: dict[str, tuple[int, ...]] = {
            f"{name}.weight": shape for name, shape in linears.items()
        }
        shapes |= {f"{name}.bias": linears[name][:1] for name in self.biased(block)}
        return shapes | {f"{name}.weight": (width,) for name, width in self.norm_widths().items()}

    def problems(self, checkpoint: Checkpoint) -> list[Problem]:
        """What is missing, misshapen or unknown in a checkpoint of this family."""
        found = self._tensor_problems(checkpoint)
        return [
            *_summed(found["missing"], list(checkpoint.tensors)),
            *_summed(found["misshapen"]),
            *_summed(found["unknown"]),
        ]

    def _tensor_problems(self, checkpoint: Checkpoint) -> dict[str, list[Problem]]:
        """What is ``missing``, ``misshapen`` and ``unknown``, tensor by tensor."""
        vocabulary, hidden = self.config["vocab_size"], self.config["hidden_size"]
        expected: dict[str, tuple[int, ...]] = {
            f"{self.embedding}.weight": (vocabulary, hidden),
            f"{self.final_norm}.weight": (hidden,),
        }
        if not self.tied:
            expected[f"{self.head}.weight"] = (vocabulary, hidden)
        prefixes = tuple(self.block_prefix(block) for block in range(self.blocks))
        for block, prefix in enumerate(prefixes):
            shapes = self.block_shapes(block)
            expected |= {prefix + name: shape for name, shape in shapes.items()}
        missing: list[Problem] = []
        misshapen: list[Problem] = []
        for name, shape in expected.items():
            info = checkpoint.tensors.get(name)
            if info is None:
                missing.append(self._missing(name, checkpoint))
            elif info.shape != shape:
                misshapen.append(
                    Problem(name, f"has shape {list(info.shape)}; the config says {list(shape)}")
                )
        model_type = self.config["model_type"]
        unknown = [
            Problem(name, f"is no tensor that a block of {model_type} with this config has")
            for name in checkpoint.tensors
            if name.startswith(prefixes)
            and name not in expected
            and not name.endswith(_IGNORED_TENSORS)
        ]
        return {"missing": missing, "misshapen": misshapen, "unknown": unknown}

    def _missing(self, name: str, checkpoint: Checkpoint) -> Problem:
        what = "the checkpoint has no such tensor"
        if name != f"{self.head}.weight":
            return Problem(name, what)
        stored = checkpoint.tensors.get(f"{self.embedding}.weight")
        if stored is not None and stored.name != f"{self.embedding}.weight":
            what += f", as is usual without the prefix 'model.' (it holds {stored.name})"
        remedy = "set tie_word_embeddings to true in config.json if the embedding is the head too"
        return Problem(name, what, remedy)

    def load_model(self, checkpoint: Checkpoint, device: torch.device) -> StreamedModel:
        """Opens a model whose weights are read block by block.

        Args:
            checkpoint: The unquantized checkpoint.
            device: Where blocks are computed.
        """
        from quantlib.models.streamed import StreamedModel

        return StreamedModel(self, checkpoint, device)

    def block_settings(self, block: int) -> BlockSettings:
        """The numbers that a block is computed with."""
        return BlockSettings(
            heads=self.heads,
            key_value_heads=self.key_value_heads,
            head_dim=self.head_dim,
            score_scale=self.head_dim**-0.5,
            activation=self.activation,
            norm_eps=float(self.config.get("rms_norm_eps", 1e-6)),
            norms=self.norms,
            sliding_window=self.sliding_window(block),
        )

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
            rotary=model.rotary(block),
            settings=self.block_settings(block),
        )

    def save_model(
        self,
        checkpoint: Checkpoint,
        output: Path,
        parts: Mapping[str, Mapping[str, TensorInfo]],
        quantization_config: Mapping[str, Any],
    ) -> None:
        """Writes what makes files of tensors a checkpoint: the index and the config.

        What names code on a hub is left out of the config.

        Args:
            checkpoint: The original.
            output: The folder to write to.
            parts: The headers of the checkpoint's safetensors files, by file name. The files are
                not touched.
            quantization_config: What vLLM and transformers read to load the parts.
        """
        placed = {tensor: part for part, tensors in parts.items() for tensor in tensors}
        total = sum(info.bytes for tensors in parts.values() for info in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        _write_json(output / INDEX_NAME, index)
        config, _ = without_code(CONFIG_NAME, with_causal_architecture(self.config))
        config["quantization_config"] = dict(quantization_config)
        _write_json(output / CONFIG_NAME, config)


def _summed(problems: list[Problem], held: Sequence[str] = ()) -> list[Problem]:
    """A few problems as they are; many of one kind, which have one cause, as one."""
    if len(problems) <= _MOST_LINES:
        return problems
    first, *others = problems
    what = f"{first.what}, and so with {len(others)} more: {listed([p.where for p in others])}"
    if held:
        what += f"; it holds {listed(held)}"
    return [Problem(first.where, what, "the config or the names are another model's")]


def _is_positive(value: Any, *, whole: bool) -> bool:
    if isinstance(value, bool) or (whole and not isinstance(value, int)):
        return False
    return isinstance(value, (int, float)) and value > 0


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
