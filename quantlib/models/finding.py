"""The layout of a model, from its config and the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import nn

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.errors import InvalidInputError
from quantlib.models.by_names import layout_of_names
from quantlib.models.discovery import Seen, look
from quantlib.models.drafts import draft_blocks_of, drafting_of
from quantlib.models.experts import count_of, linear_shapes
from quantlib.models.folds import FoldFinder, NotFoldableError
from quantlib.models.layout import (
    ANY_EXPERT,
    EXPERT_PARTS,
    Attention,
    BlockKind,
    Experts,
    Layout,
    Producer,
    SharedInput,
)
from quantlib.models.missing import tensor_problems
from quantlib.models.names import Names, servable_names
from quantlib.models.naming import FEW_OUTPUTS, NO_LINEAR, OTHER_EXPERTS, SMALLEST_SIDE, outside_of
from quantlib.models.skeleton import NotWalkableError, Skeleton

SPLIT_TENSOR = "is stored as a part of another tensor"


def find_layout(checkpoint: Checkpoint, *, folds: bool = True) -> Layout:
    """Finds out what a model is made of; no weight is read.

    A model that cannot be walked gets the layout that names and shapes of its tensors suggest, by
    which it can be quantized without a forward.

    Args:
        checkpoint: The config, and the names and shapes of the tensors.
        folds: Whether to find out where scales can be folded, which takes most of the time.

    Raises:
        InvalidInputError: The checkpoint is not whole, or no blocks are to be seen in it.
    """
    try:
        return _walked_layout(checkpoint, folds)
    except NotWalkableError as error:
        return layout_of_names(checkpoint, error.problems)


@torch.no_grad()  # as all walks: parts of some models are, and modes may not change on the way
def _walked_layout(checkpoint: Checkpoint, folds: bool) -> Layout:
    skeleton = Skeleton(checkpoint.config)
    names = Names.of(skeleton, checkpoint.tensors)
    if renamed := servable_names(skeleton, names, checkpoint.tensors):
        checkpoint = checkpoint.renamed(renamed)
        names = Names.of(skeleton, checkpoint.tensors)
    if problems := tensor_problems(skeleton, names, checkpoint):
        raise InvalidInputError(skeleton.field_problems + problems)
    if skeleton.field_problems:
        raise NotWalkableError(skeleton.field_problems)
    seen, axes, crosses = look(skeleton)
    prefix = _disk_prefix(skeleton, names)
    kinds: list[BlockKind] = []
    known: dict[str, int] = {}
    kind_of = []
    for index, found in enumerate(seen):
        signature = _signature(skeleton, names, index, found, prefix)
        if signature not in known:
            known[signature] = len(kinds)
            kinds.append(_Kind(skeleton, names, index, prefix).of(found, folds))
        kind_of.append(known[signature])
    embedding, head = (
        names.renamed.get(f"{module}.weight", f"{module}.weight").removesuffix(".weight")
        for module in (skeleton.embedding, skeleton.head)
    )
    inner = tuple(prefix.format(index) for index in range(len(kind_of)))
    outer = {
        name: info.shape for name, info in checkpoint.tensors.items() if not name.startswith(inner)
    }
    outside = outside_of(outer, prefix, {embedding, head})
    drafting = drafting_of(outer, outside)
    return Layout(
        architecture=type(skeleton.model).__name__,
        prefix=prefix,
        module_prefix=skeleton.prefix + "{}.",
        kinds=tuple(kinds),
        kind_of=tuple(kind_of),
        embedding=embedding,
        head=head,
        tied=bool(getattr(skeleton.config, "tie_word_embeddings", False)),
        embedding_shape=_matrix_shape(skeleton.model.get_input_embeddings()),
        head_shape=_matrix_shape(skeleton.model.get_output_embeddings()),
        renamed=renamed,
        axes=axes,
        embeds_cross=crosses,
        extra=tuple(names.extra),
        outside=outside,
        drafting=tuple(drafting),
        draft_blocks=draft_blocks_of(drafting, kinds, kind_of),
    )


def _matrix_shape(module: nn.Module | None) -> tuple[int, int]:
    weight = getattr(module, "weight", None)
    shape = tuple(getattr(weight, "shape", ()))
    return (shape[0], shape[1]) if len(shape) == 2 else (0, 0)


def _disk_prefix(skeleton: Skeleton, names: Names) -> str:
    """What the names of a block's tensors start with, ``{}`` standing for its number."""
    found: dict[str, None] = {}
    start = f"{skeleton.prefix}0."
    for tensor, key in names.target.items():
        if key.startswith(start):
            before, _, _ = tensor.partition(".0.")
            found[before + ".{}."] = None
    if len(found) != 1:
        raise InvalidInputError.one(
            "the checkpoint",
            f"holds no tensors of the first block, {start}*"
            if not found
            else f"holds tensors of the first block by different names: {', '.join(found)}",
            "the config or the names are another model's",
        )
    return next(iter(found))


def _signature(skeleton: Skeleton, names: Names, index: int, seen: Seen, prefix: str) -> str:
    """Equal for blocks of one kind."""
    block = skeleton.blocks[index]
    shapes = sorted((name, tuple(each.shape)) for name, each in block.named_parameters())
    start = f"{skeleton.prefix}{index}."
    stored = sorted(
        tensor.removeprefix(prefix.format(index))
        for key in (start + name for name, _ in shapes)
        for tensor in (names.renamed.get(key), *names.converted.get(key, ()))
        if tensor is not None
    )
    return repr((type(block).__name__, seen.inputs, seen.attention, shapes, stored))


class _Kind:
    """One block, and what its parameters are called in the checkpoint."""

    def __init__(self, skeleton: Skeleton, names: Names, index: int, prefix: str) -> None:
        self._skeleton = skeleton
        self._names = names
        self._index = index
        self._block = skeleton.blocks[index]
        self._start = f"{skeleton.prefix}{index}."
        self._prefix = prefix.format(index)
        self._shapes: dict[str, tuple[int, int]] = {}
        self._modules: dict[str, str] = {}
        self._exact: dict[str, str] = {}

    def of(self, seen: Seen, find_folds: bool) -> BlockKind:
        """The kind of a block that did so."""
        folds = None
        if find_folds:
            with suppress(NotFoldableError):
                call = seen.call
                folds = FoldFinder(self._skeleton, self._index, call.arguments, call.kwargs)
        inputs = []
        experts = tuple(map(self._experts, self._skeleton.experts[self._index]))
        try:
            for linears, of_experts in seen.inputs:
                shared = (
                    self._dense(linears, folds)
                    if of_experts is None
                    else self._of_experts(*of_experts, folds)
                )
                if shared is not None:
                    inputs.append(shared)
        finally:
            if folds is not None:
                folds.close()
        self._add_other_matrices()
        return BlockKind(
            inputs=tuple(inputs),
            shapes=self._shapes,
            modules=self._modules,
            exact=self._exact,
            experts=experts,
            attention=tuple(self._attention(*each) for each in seen.attention.items()),
        )

    def _attention(self, module: str, heads: tuple[int, int, int]) -> Attention:
        """A module that attends, with its heads as :class:`Seen` has them."""
        attending = self._block.get_submodule(module)
        query_heads, key_heads, width = heads
        return Attention(
            name=self._stored_module(module, attending),
            module=module,
            type=type(attending).__name__,
            query_heads=query_heads,
            heads=key_heads,
            width=width,
            latent=hasattr(attending, "kv_b_proj"),
        )

    def _stored_module(self, module: str, attending: nn.Module) -> str:
        """What the checkpoint calls a module, by what it calls its parameters."""
        for name, _ in attending.named_parameters():
            tensor = self._names.renamed.get(f"{self._start}{module}.{name}", "")
            if tensor.startswith(self._prefix) and tensor.endswith(f".{name}"):
                return tensor.removeprefix(self._prefix).removesuffix(f".{name}")
        return module

    def _add_other_matrices(self) -> None:
        """Routers, convolutions and experts of other code: vLLM has linears for some of them."""
        within = tuple(f"{name}." for name in self._skeleton.experts[self._index])
        for name, parameter in self._block.named_parameters():
            module, _, last = name.rpartition(".")
            if parameter.dim() < 2 or name.startswith(within or "\0"):
                continue
            if last != "weight":
                if parameter.dim() > 2:
                    self._exact[name] = OTHER_EXPERTS
                continue
            linear = self._stored(module)
            if linear is not None and linear not in self._shapes:
                self._exact.setdefault(linear, NO_LINEAR)

    def _dense(self, modules: Sequence[str], folds: FoldFinder | None) -> SharedInput | None:
        linears = []
        for name in modules:
            module = self._block.get_submodule(name)
            assert isinstance(module, nn.Linear)
            linear = self._stored(name)
            if linear is None:
                self._exact[name] = SPLIT_TENSOR
            elif min(module.out_features, module.in_features) < SMALLEST_SIDE:
                self._exact[linear] = FEW_OUTPUTS
            elif linear not in self._shapes:
                linears.append(linear)
                self._shapes[linear] = (module.out_features, module.in_features)
                if linear != name:
                    self._modules[linear] = name
        if not linears:
            return None
        producer = None
        # A linear that stays exact reads the input as it is.
        if folds is not None and len(linears) == len(modules):
            producer = self._renamed(folds.producer_of(modules))
        return SharedInput(name=linears[0], linears=tuple(linears), producer=producer)

    def _renamed(self, producer: Producer | None) -> Producer | None:
        if producer is None:
            return None
        stored = self._stored(producer.name)
        return None if stored is None else producer.model_copy(update={"name": stored})

    def _stored(self, module: str) -> str | None:
        """The name in the checkpoint of a module whose weight is a tensor of its own."""
        tensor = self._names.renamed.get(f"{self._start}{module}.weight")
        if tensor is None or not tensor.endswith(".weight"):
            return None
        return tensor.removeprefix(self._prefix).removesuffix(".weight")

    def _experts(self, name: str) -> Experts:
        module = self._skeleton.experts[self._index][name]
        parts = {
            parameter: tuple(
                part.removeprefix(self._prefix)
                for part in self._names.expert_parts(f"{self._start}{name}.{parameter}")
            )
            for parameter, _ in module.named_parameters()
        }
        return Experts(
            module=name,
            count=count_of(module),
            parts=parts,
            transposed=bool(module.is_transposed),
            interleaved=bool(module.has_gate and not module.is_concatenated),
            chosen=module.walked_chosen,
        )

    def _of_experts(self, name: str, down: bool, folds: FoldFinder | None) -> SharedInput:
        module = self._skeleton.experts[self._index][name]
        shapes = linear_shapes(module)
        called = self._expert_linears(name, list(shapes))
        wanted = [linear for linear in shapes if (linear == "down_proj") == down]
        for linear in wanted:
            self._shapes[called[linear]] = shapes[linear]
            self._modules[called[linear]] = f"{name}.{ANY_EXPERT}.{linear}"
        producer = None
        if down and folds is not None and folds.gate_is_linear(name):
            producer = Producer(name=called["up_proj"])
        linears = tuple(called[linear] for linear in wanted)
        return SharedInput(
            name=linears[0], linears=linears, producer=producer, experts=count_of(module)
        )

    def _expert_linears(self, name: str, linears: Sequence[str]) -> Mapping[str, str]:
        """What the linears of an expert are called in a checkpoint with a matrix for each."""
        named: dict[str, str] = {}
        start = f"{self._start}{name}."
        for parameter, own in EXPERT_PARTS.items():
            parts = self._names.expert_parts(start + parameter)
            if len(parts) == len(own) and ANY_EXPERT in parts[0]:
                stored = [part.removeprefix(self._prefix) for part in parts]
                named |= dict(
                    zip(own, (part.removesuffix(".weight") for part in stored), strict=True)
                )
        return {
            linear: named.get(linear, f"{self._stacked(name)}.{ANY_EXPERT}.{linear}")
            for linear in linears
        }

    def _stacked(self, name: str) -> str:
        """What the checkpoint calls a module of experts that it stores in one tensor each."""
        tensor = self._names.renamed.get(f"{self._start}{name}.down_proj", "")
        stored = tensor.removeprefix(self._prefix).removesuffix(".down_proj")
        return stored if tensor.endswith(".down_proj") else name
