"""What a model is made of: its blocks, their linears by shared input, what stays exact. Pure data.

Names of linears and tensors are those of the checkpoint, within the block: ``self_attn.q_proj``.
``*`` stands for the number of an expert.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache

from pydantic import BaseModel, ConfigDict

ANY_EXPERT = "*"

_EXPERT_NUMBER = re.compile(r"(?<=experts\.)\d+(?=\.)")

EXPERT_PARTS = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "up_proj": ("up_proj",),
    "down_proj": ("down_proj",),
}
"""The matrices of an expert that lie together in a parameter of transformers with all experts."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Producer(_Data):
    """What gives a shared input its channels, one by one.

    Dividing an output channel of the producer by a positive number divides the input channels that
    come from it by that number, and nothing else in the model changes.

    Attributes:
        name: A norm or a linear within the block: ``input_layernorm``, ``self_attn.v_proj``.
        norm: Whether it is a norm.
        offset: What a norm adds to its stored weight.
        first_row: The row of the linear that gives the first channel, where it gives other things
            too.
        head_dim: Channels of a head, where ``repeats`` is not 1.
        repeats: How many heads of the input in a row come from one head of the producer, as in
            grouped-query attention.
    """

    name: str
    norm: bool = False
    offset: float = 0.0
    first_row: int = 0
    head_dim: int = 1
    repeats: int = 1


class SharedInput(_Data):
    """Linears of a block that read the same tensor.

    Attributes:
        name: What messages and files call it: the name of the first linear that reads it.
        linears: Those that can be quantized, in the order in which they are computed.
        producer: Where a scale per input channel can be folded; None where it cannot.
        experts: How many experts have these linears; 0 outside of experts.
        expert: Which expert of a mixture they belong to; its input is the tokens routed to it.
            None outside of experts, and where the names stand for all of them.
    """

    name: str
    linears: tuple[str, ...]
    producer: Producer | None = None
    experts: int = 0
    expert: int | None = None

    def of_expert(self, expert: int) -> SharedInput:
        """The same of one expert."""
        producer = self.producer
        if producer is not None:
            producer = producer.model_copy(update={"name": of_expert(producer.name, expert)})
        return SharedInput(
            name=of_expert(self.name, expert),
            linears=tuple(of_expert(linear, expert) for linear in self.linears),
            producer=producer,
            experts=self.experts,
            expert=expert,
        )


class Experts(_Data):
    """The experts of a mixture.

    Attributes:
        module: The module of transformers within the block: ``mlp.experts``.
        count: How many there are.
        parts: For each parameter of that module, the names of the tensors that hold it: one with
            all experts, or with ``*`` in their names those of each expert, in the order in which
            they are concatenated.
        transposed: Whether matrices that lie with those of all experts are ``[in, out]``.
        interleaved: Whether the rows of ``gate_up_proj`` are of gate and up in turn; else those of
            gate come first.
        chosen: How many of them a token goes to; 0 where that is not known.
    """

    module: str
    count: int
    parts: Mapping[str, tuple[str, ...]]
    transposed: bool = False
    interleaved: bool = False
    chosen: int = 0


class Attention(_Data):
    """A module that keeps keys and values while a text goes on.

    Attributes:
        name: What the checkpoint calls it within the block: ``self_attn``.
        module: transformers' name within the block.
        type: Its class: ``LlamaAttention``.
        query_heads: Heads of the queries.
        heads: Heads of keys and values.
        width: Channels of a head of the keys.
        latent: Whether keys and values are made of one vector, which is what is kept (MLA).
    """

    name: str
    module: str
    type: str
    query_heads: int
    heads: int
    width: int
    latent: bool = False


class BlockKind(_Data):
    """What blocks of one kind have in common.

    Attributes:
        inputs: Their linears by shared input, in the order of computation.
        shapes: ``(out_features, in_features)`` of each linear that can be quantized.
        modules: transformers' name of each of them within the block, where it is another.
        exact: Linears that are never quantized, and why.
        experts: The mixtures.
        attention: The modules that keep keys and values.
    """

    inputs: tuple[SharedInput, ...]
    shapes: Mapping[str, tuple[int, int]]
    modules: Mapping[str, str] = {}
    exact: Mapping[str, str] = {}
    experts: tuple[Experts, ...] = ()
    attention: tuple[Attention, ...] = ()

    @property
    def expert_shapes(self) -> tuple[tuple[int, int], ...]:
        """``(out_features, in_features)`` of each input of an expert, of its linears together."""
        return tuple(
            (sum(self.shapes[linear][0] for linear in shared.linears), self.shapes[shared.name][1])
            for shared in self.inputs
            if shared.experts
        )


class Obstacle(_Data):
    """Why a model cannot be walked.

    Attributes:
        where: What was looked at.
        what: What is in the way there.
        remedy: What could be done about it; empty where nothing can.
    """

    where: str
    what: str
    remedy: str = ""


class Layout(_Data):
    """A model.

    Attributes:
        architecture: The class of transformers: ``LlamaForCausalLM``.
        prefix: What the names of a block's tensors start with, with ``{}`` for its number.
        module_prefix: The same of transformers' modules.
        kinds: The different blocks.
        kind_of: For each block, which of the kinds it is.
        embedding: The tensor with the token embedding.
        head: The linear that gives the logits.
        tied: Whether the head is the embedding.
        embedding_shape: Tokens, and channels of their vectors; zeros where that is not known.
        head_shape: ``(out_features, in_features)`` of the head; zeros where there is none.
        renamed: The names that vLLM and transformers know, for tensors that are stored by others:
            one, or those of equal parts that lie one after the other.
        axes: Along which axis samples lie in what crosses between blocks, where it is not the
            first (:mod:`quantlib.models.boundary`).
        embeds_cross: Whether blocks after the first need the tokens, or their embedding, too.
        extra: Tensors that belong to no module: copied as they are.
        obstacles: Why the layout is made of names and shapes alone, and the model cannot be walked;
            empty where it can.
        outside: What else holds linears outside of the blocks, and why they stay exact: a linear,
            or with a dot at its end a module.
        drafting: The matrices of modules that draft tokens, without ``.weight``.
        draft_blocks: What the names of tensors of a block that drafts tokens start with, and the
            number of a block of the model that has the same linears.
    """

    architecture: str
    prefix: str
    module_prefix: str
    kinds: tuple[BlockKind, ...]
    kind_of: tuple[int, ...]
    embedding: str
    head: str
    tied: bool
    embedding_shape: tuple[int, int] = (0, 0)
    head_shape: tuple[int, int] = (0, 0)
    renamed: Mapping[str, tuple[str, ...]] = {}
    axes: Mapping[str, int] = {}
    embeds_cross: bool = False
    extra: tuple[str, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    outside: Mapping[str, str] = {}
    drafting: tuple[str, ...] = ()
    draft_blocks: Mapping[str, int] = {}

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.kind_of)

    def carried(self, rounded: Collection[str] = ()) -> Mapping[str, int]:
        """How many tensors belong to no module, by the part that they are of: ``mtp``.

        What lies within blocks of the model is counted together.

        Args:
            rounded: Those that do not count, for they are not carried.
        """
        own = {self.prefix.format(block).removesuffix(".") for block in range(self.blocks)}
        within = self.prefix.format(ANY_EXPERT).removesuffix(".")
        parts = (_part(name) for name in self.extra if name not in rounded)
        return Counter(within if part in own else part for part in parts)

    def kind(self, block: int) -> BlockKind:
        """What a block is made of."""
        return self.kinds[self.kind_of[block]]

    def attention(self, block: int) -> tuple[Attention, ...]:
        """The modules of a block that keep keys and values."""
        return self.kind(block).attention

    def inputs(self, block: int) -> tuple[SharedInput, ...]:
        """The shared inputs of a block, those of each expert one after the other."""
        return _expanded(self.kind(block).inputs)


def _part(name: str) -> str:
    """What a tensor is of: a numbered block, ``model.layers.61``, or the first module."""
    parts = name.split(".")
    numbers = [at for at, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:1])


@lru_cache(maxsize=1 << 14)
def without_expert(linear: str) -> str:
    """The name that the same linear has in every expert: ``mlp.experts.*.up_proj``."""
    return _EXPERT_NUMBER.sub(ANY_EXPERT, linear)


def of_expert(name: str, expert: int) -> str:
    """A name with the number of an expert."""
    return name.replace(ANY_EXPERT, str(expert))


def _expanded(inputs: tuple[SharedInput, ...]) -> tuple[SharedInput, ...]:
    return _expand(tuple(shared.model_dump_json() for shared in inputs))


@lru_cache(maxsize=64)
def _expand(dumped: tuple[str, ...]) -> tuple[SharedInput, ...]:
    expanded: list[SharedInput] = []
    mixture: list[SharedInput] = []
    for shared in (*map(SharedInput.model_validate_json, dumped), None):
        if mixture and (shared is None or shared.experts != mixture[0].experts):
            expanded += [
                each.of_expert(expert) for expert in range(mixture[0].experts) for each in mixture
            ]
            mixture = []
        if shared is not None and shared.experts:
            mixture.append(shared)
        elif shared is not None:
            expanded.append(shared)
    return tuple(expanded)
