"""What the rest of quantlib needs to know of a model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.models.layout import ANY_EXPERT, EXPERT_PARTS, Layout, SharedInput, without_expert
from quantlib.models.naming import DRAFTING
from quantlib.scheme_rules import OuterKind

if TYPE_CHECKING:
    from quantlib.models.skeleton import Skeleton


class ModelFamily(ABC):
    """A model family: what its :class:`Layout` says, and what it does not say.

    It holds names, never weights.

    Attributes:
        exact: Patterns of linears that are never quantized, by name within the block, and why.
        computed_as: The model type by which transformers knows the modules, where it is another.
        in_float32: Whether transformers' forward works in float32 only.
        config: The parsed ``config.json``.
        layout: What the model is made of.
    """

    exact: ClassVar[Mapping[str, str]] = {}
    computed_as: ClassVar[str | None] = None
    in_float32: ClassVar[bool] = False

    def __init__(self, config: Mapping[str, Any], layout: Layout) -> None:
        self.config = config
        self.layout = layout
        self._names: tuple[object, dict[int, list[str]]] | None = None
        self._inputs: dict[int, tuple[SharedInput, ...]] = {}

    @classmethod
    def transformers_config(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The config by which transformers builds the modules."""
        if cls.computed_as is None:
            return config
        return {**config, "model_type": cls.computed_as, "architectures": None}

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of the config that says what the language model is like."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, Mapping) else self.config

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.layout.blocks

    @property
    def max_sequence_length(self) -> int:
        """Tokens that the model was made for."""
        return int(self.text_config.get("max_position_embeddings") or 2048)

    @property
    def embedding(self) -> str:
        """Name of the token embedding."""
        return self.layout.embedding

    @property
    def head(self) -> str:
        """Name of the linear that gives the logits."""
        return self.layout.head

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.layout.tied

    def outer_module(self, kind: OuterKind) -> str:
        """The full name of what lies outside of the blocks."""
        return self.head if kind == "lm_head" else self.embedding

    def outer_shape(self, kind: OuterKind) -> tuple[int, int]:
        """``(out_features, in_features)`` of it; zeros where there is nothing of the kind."""
        layout = self.layout
        return layout.head_shape if kind == "lm_head" else layout.embedding_shape

    def outer_names(self, kind: OuterKind) -> tuple[str, ...]:
        """What a config names it by, for vLLM to read codes; empty where it reads none."""
        return (self.outer_module(kind),)

    @property
    def drafts(self) -> bool:
        """Whether the checkpoint has layers that draft tokens."""
        return DRAFTING in self.layout.outside.values()

    def block_prefix(self, block: int) -> str:
        """What the names of a block's tensors start with: ``model.layers.3.``."""
        return self.layout.prefix.format(block)

    def kept_exact(self, block: int) -> Mapping[str, str]:
        """Linears of a block that are never quantized, and why."""
        kind = self.layout.kind(block)
        named = {
            linear: why
            for linear in kind.shapes
            for pattern, why in self.exact.items()
            if fnmatchcase(linear, pattern)
        }
        return {**kind.exact, **named}

    def inputs(self, block: int) -> tuple[SharedInput, ...]:
        """The linears of a block that can be quantized, by the input that they share.

        They stand in the order in which the inputs arise, those of each expert one after the other.
        """
        kind = self.layout.kind_of[block]
        if kind not in self._inputs:  # blocks of a kind are asked for often, with all their experts
            kept = self.kept_exact(block)
            self._inputs[kind] = tuple(
                part
                for shared in self.layout.inputs(block)
                if (part := _without(shared, kept)) is not None
            )
        return self._inputs[kind]

    def linears(self, block: int) -> tuple[str, ...]:
        """Names of all linears of a block that can be quantized."""
        return tuple(linear for shared in self.inputs(block) for linear in shared.linears)

    def linear_name(self, block: int, linear: str) -> str:
        """The full name of a linear: ``model.layers.3.mlp.up_proj``."""
        return self.block_prefix(block) + linear

    def linear_shape(self, block: int, linear: str) -> tuple[int, int]:
        """``(out_features, in_features)`` of a linear."""
        shapes = self.layout.kind(block).shapes
        return shapes[linear] if linear in shapes else shapes[without_expert(linear)]

    def block_tensors(self, checkpoint: Checkpoint, block: int) -> tuple[str, ...]:
        """Full names of a block's tensors, in the order of the file."""
        if self._names is None or self._names[0] is not checkpoint.tensors:
            self._names = (checkpoint.tensors, self._by_block(checkpoint.tensors))
        return tuple(self._names[1].get(block, ()))

    def _by_block(self, tensors: Iterable[str]) -> dict[int, list[str]]:
        """Names of tensors by the number of their block."""
        before = self.layout.prefix.removesuffix("{}.").format()
        found: dict[int, list[str]] = {}
        for name in tensors:
            number = name.removeprefix(before).partition(".")[0]
            if name.startswith(before) and number.isdecimal():
                found.setdefault(int(number), []).append(name)
        return found

    def replaced(self, checkpoint: Checkpoint, block: int, quantized: Collection[str]) -> set[str]:
        """Full names of the tensors whose place quantized linears take."""
        prefix = self.block_prefix(block)
        names = {f"{prefix}{linear}.weight" for linear in quantized}
        templates = {without_expert(linear) for linear in quantized}
        for experts in self.layout.kind(block).experts:
            for parameter, parts in experts.parts.items():
                if parameter.endswith("bias") or ANY_EXPERT in parts[0]:
                    continue
                owners = self.stacked_linears(block, experts.module, parameter)
                if templates.intersection(owners):
                    names.add(prefix + parts[0])
        return names.intersection(checkpoint.tensors)

    def stacked_linears(self, block: int, module: str, parameter: str) -> tuple[str, ...]:
        """The linears of an expert that lie together in a tensor with all experts."""
        own = EXPERT_PARTS.get(parameter, (parameter,))
        modules = self.layout.kind(block).modules
        return tuple(
            linear
            for linear, name in modules.items()
            if name in {f"{module}.{ANY_EXPERT}.{each}" for each in own}
        )

    def stored_dtype(self, checkpoint: Checkpoint) -> str:
        """The dtype of the linears, as safetensors writes it."""
        for block in range(self.blocks):
            prefix = self.block_prefix(block)
            for linear in self.linears(block):
                info = checkpoint.tensors.get(f"{prefix}{linear}.weight")
                if info is not None:
                    return info.dtype
            for experts in self.layout.kind(block).experts:
                stacked = prefix + next(iter(experts.parts.values()))[0]
                if stacked in checkpoint.tensors:
                    return checkpoint.info(stacked).dtype
        return checkpoint.info(f"{self.embedding}.weight").dtype

    @abstractmethod
    def fused(self, block: int) -> Mapping[str, tuple[str, ...]]:
        """The linears that vLLM fuses, by the full name that it gives the fused one.

        All linears of all experts of a mixture are the parts of one.
        """

    def spelled(self, block: int, linear: str) -> tuple[str, ...]:
        """The names by which vLLM may ask for a linear that stays exact; its own among them."""
        return (self.linear_name(block, linear),)

    def outside(self, rounded: Collection[str] = ()) -> tuple[str, ...]:
        """Linears outside of the blocks, and with a dot at the end modules, as vLLM names them too.

        They stay exact.

        Args:
            rounded: Linears of draft layers that do not.
        """
        if not rounded:
            return tuple(self.layout.outside)
        others = [name for name, why in self.layout.outside.items() if why != DRAFTING]
        return (*others, *self.exact_drafting(rounded))

    def exact_drafting(self, rounded: Collection[str]) -> tuple[str, ...]:
        """What of the draft layers stays exact where some of their linears do not.

        Args:
            rounded: Those linears.

        Returns:
            Linears, and with a dot at the end the modules that experts lie in.
        """
        kept = [name for name in self.layout.drafting if name not in rounded]
        parts = (name.partition(".experts.") for name in kept)
        return tuple(dict.fromkeys(name + experts for name, experts, _ in parts))

    @abstractmethod
    def needed_outside(self, skeleton: Skeleton, *, images: bool = False) -> Callable[[str], bool]:
        """Says of a parameter outside of the blocks whether text goes through it.

        Args:
            skeleton: The modules.
            images: Whether images go through it, too.
        """

    def format_problem(self, format_name: str, exact: Sequence[Collection[str]]) -> str | None:
        """Why vLLM cannot read the family in a format that it reads otherwise; None where it can.

        Args:
            format_name: The format.
            exact: For each block, the names within it of the linears that stay exact.
        """
        return None


def _without(shared: SharedInput, kept: Collection[str]) -> SharedInput | None:
    """A shared input without linears that stay exact: they read and give what they did."""
    linears = tuple(
        linear
        for linear in shared.linears
        if linear not in kept and without_expert(linear) not in kept
    )
    if not linears:
        return None
    if linears == shared.linears:
        producer = shared.producer
        if producer is None or producer.norm or without_expert(producer.name) not in kept:
            return shared
        return shared.model_copy(update={"producer": None})
    return shared.model_copy(update={"linears": linears, "producer": None, "name": linears[0]})
