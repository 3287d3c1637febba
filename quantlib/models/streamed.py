"""A model whose weights are read when they are needed, by the names of its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.tensors import TORCH_DTYPES, read_tensor
from quantlib.errors import InvalidInputError
from quantlib.models.attention import at_attention
from quantlib.models.block_tensors import BlockTensors
from quantlib.models.boundary import HIDDEN, joined, root_of, split
from quantlib.models.family import ModelFamily
from quantlib.models.layout import Attention, SharedInput, without_expert
from quantlib.models.reading import Reader
from quantlib.models.samples import empty_batches, one_by_one, token_batches
from quantlib.models.skeleton import Skeleton, free
from quantlib.models.stored import StoredTensors
from quantlib.models.walk import Walk
from quantlib.runtime.devices import batch_samples, product_dtype


class Block:
    """One block with its weights.

    Attributes:
        index: Which block it is.
        inputs: Its linears by shared input, in the order of computation.
        attention: Its modules that keep keys and values.
        tensors: Its tensors by name within the block; those of an expert while the walk stands at
            it, or at another that is quantized with it. One that is set counts for what comes after
            it, in the dtype of the model; it is read as it was set.
        device: Where it is computed.
        stored: The dtypes of its tensors in the checkpoint, by name within the block.
        expert_shapes: As its kind has them.
    """

    def __init__(
        self, model: StreamedModel, index: int, tensors: StoredTensors | BlockTensors
    ) -> None:
        self.index = index
        prefix = model.adapter.block_prefix(index)
        self.stored = {
            name.removeprefix(prefix): TORCH_DTYPES[model.checkpoint.info(name).dtype]
            for name in model.adapter.block_tensors(model.checkpoint, index)
        }
        self.inputs = model.adapter.inputs(index)
        self.attention = model.adapter.layout.attention(index)
        self.expert_shapes = model.adapter.layout.kind(index).expert_shapes
        self.device = model.device
        self.tensors = tensors
        self._model = model

    def weight(self, linear: str) -> Tensor:
        """The weight of a linear, ``[out_features, in_features]``."""
        return self.tensors[f"{linear}.weight"]

    def as_stored(self, name: str) -> Tensor:
        """A tensor as it was set, or else as the checkpoint has it, where that is more exact."""
        tensor = self.tensors[name]
        if self.tensors.was_set(name) or tensor.dtype in (self.stored[name], torch.float32):
            return tensor
        full = self._model.adapter.block_prefix(self.index) + name
        return read_tensor(self._model.checkpoint, full).to(self.device)


@dataclass(frozen=True)
class Standing:
    """All batches standing before linears that read the same tensor.

    Attributes:
        shared: The linears.
        inputs: What they read, ``[..., in_features]``, of each batch.
        everyone: What gives the same if all tokens came to the expert; empty outside of experts.
        rows: Which tokens came to the expert, of those of all windows without images, one behind
            the other; of each batch of them.
    """

    shared: SharedInput
    inputs: list[Tensor]
    everyone: list[Callable[[], Tensor]]
    rows: Sequence[Tensor] = ()


class StreamedModel:
    """A model on disk, of which at most one block is in memory at a time.

    Attributes:
        adapter: The model's family.
        checkpoint: Its weights.
        device: Where it is computed.
        dtype: The dtype in which it is computed.
        stored_dtype: The dtype that the checkpoint's linears are stored in.
        reader: Reads the weights into transformers' modules.
    """

    def __init__(self, adapter: ModelFamily, checkpoint: Checkpoint, device: torch.device) -> None:
        self.adapter = adapter
        self.checkpoint = checkpoint
        self.device = device
        self.stored_dtype = TORCH_DTYPES[adapter.stored_dtype(checkpoint)]
        self.dtype = product_dtype(device, self.stored_dtype)
        if adapter.in_float32:
            self.dtype = torch.float32
        self._reader: Reader | None = None

    @property
    def reader(self) -> Reader:
        """Made when it is first asked for: a model that is only looked up needs no modules."""
        if self._reader is None:
            skeleton = Skeleton(self.adapter.transformers_config(self.adapter.config), self.dtype)
            self._reader = Reader(skeleton, self.checkpoint, self.device, self.dtype)
        return self._reader

    def block(self, index: int) -> Block:
        """One block without any tokens: its tensors are read by their names, by no module."""
        tensors = StoredTensors(self.adapter, self.checkpoint, index, self.device)
        return Block(self, index, tensors)

    def each(self, blocks: range) -> Iterator[Block]:
        """Blocks one after the other, without any tokens."""
        return map(self.block, blocks)

    def walk(
        self,
        tokens: Tensor | None,
        blocks: range,
        boundary: Mapping[str, Tensor] | None = None,
        illustrated: Iterable[Mapping[str, Tensor]] | None = None,
        *,
        to_head: bool = False,
    ) -> BlockWalk:
        """Sends tokens through a range of blocks.

        Args:
            tokens: int64 ``[samples, sequence]``; None where only their hidden states count.
            blocks: The range.
            boundary: What :meth:`BlockWalk.boundary` gave before the first of them; None for the
                model's first block.
            illustrated: Samples with images, each what the model's own forward is given of it; they
                come behind those of tokens alone, and one at a time. None where there are none.
            to_head: Whether they go on to the head after the last block of the model.

        Raises:
            InvalidInputError: The model's forward refuses a sample with images.
        """
        if tokens is None:
            assert boundary is not None
            tokens = self._any_tokens(boundary)
        return BlockWalk(self, tokens, blocks, boundary, illustrated, to_head=to_head)

    def _any_tokens(self, boundary: Mapping[str, Tensor]) -> Tensor:
        """Tokens as many as there are hidden states."""
        axis = self.adapter.layout.axes.get(HIDDEN, 0)
        hidden = next(tensor for name, tensor in boundary.items() if root_of(name) == HIDDEN)
        return torch.zeros(hidden.shape[axis : axis + 2], dtype=torch.int64)

    def read_outer(self, *, embedding: bool, images: bool = False) -> None:
        """Reads what lies outside of the blocks and is needed for them.

        Args:
            embedding: Whether the embeddings are needed.
            images: Whether what images go through is.
        """
        skeleton = self.reader.skeleton
        head = f"{skeleton.head}."
        needed = self.adapter.needed_outside(skeleton, images=images)

        def wanted(key: str) -> bool:
            if key.startswith(head) or not needed(key):
                return False
            return embedding or not key.startswith(f"{skeleton.embedding}.")

        self.reader.read_outer(wanted)

    def read_head(self) -> None:
        """Reads the head, which may be the embeddings."""
        skeleton = self.reader.skeleton
        of_head = tuple(f"{name}." for name in (skeleton.head, skeleton.embedding) if name)
        self.reader.read_outer(lambda key: key.startswith(of_head))

    def free_towers(self) -> None:
        """Frees what images go through and text does not."""
        skeleton = self.reader.skeleton
        needed = self.adapter.needed_outside(skeleton)
        for name, module in skeleton.model.named_modules():
            if not needed(name):
                free(module)


class BlockWalk:
    """Tokens on their way through a range of blocks.

    A sample with images is a batch of its own. Its pixels are freed when it stands before the first
    block; the tower is read for every range: what a model makes of images may cross to later
    blocks, and the places of tokens follow from it.
    """

    def __init__(
        self,
        model: StreamedModel,
        tokens: Tensor,
        blocks: range,
        boundary: Mapping[str, Tensor] | None,
        illustrated: Iterable[Mapping[str, Tensor]] | None,
        *,
        to_head: bool = False,
    ) -> None:
        self._model = model
        self._blocks = blocks
        layout = model.adapter.layout
        images = illustrated is not None
        embeds = boundary is None or layout.embeds_cross or images
        model.read_outer(embedding=embeds, images=images)
        skeleton = model.reader.skeleton
        samples = batch_samples(model.device, tokens.shape[1])
        if embeds:
            batches = token_batches(tokens, samples, model.device)
        else:
            width = skeleton.text_config.hidden_size
            batches = empty_batches(tokens, samples, width, model.device, model.dtype)
        boundaries = None
        if boundary is not None:
            cast = {
                name: tensor.to(model.dtype) if tensor.is_floating_point() else tensor
                for name, tensor in boundary.items()
            }
            boundaries = split(cast, samples, layout.axes, model.device)
        self._of_tokens = len(batches)
        self._batch_tokens = samples * tokens.shape[1]
        given = chain(batches, one_by_one(illustrated or (), model.device, model.dtype))
        try:
            self._walk = Walk(model.reader, given, blocks, boundaries, to_head=to_head)
        except ValueError as error:
            if not images:
                raise
            raise InvalidInputError.one("a window with images", f"is refused: {error}") from None
        if images:
            model.free_towers()
        # Every batch is embedded: the table, which may be the head's too, is the largest thing.
        free(skeleton.model.get_input_embeddings())
        if (head := skeleton.model.get_output_embeddings()) is not None:
            free(head)

    def __iter__(self) -> Iterator[Block]:
        """Reads each block in its turn; goes on when the caller is done with it."""
        try:
            for index in self._blocks:
                self._walk.enter(index)
                block = Block(
                    self._model, index, BlockTensors(self._model.reader, self._model.adapter, index)
                )
                self._done = False
                yield block
                if not self._done:
                    self.pass_through(block)
                self._walk.leave(index)
        finally:
            self._walk.close()

    def standings(
        self, block: Block, wanted: Sequence[SharedInput], experts_at_once: int = 1
    ) -> Iterator[Standing]:
        """Computes a block, stopping at shared inputs.

        Args:
            block: The block that the tokens stand before.
            wanted: Where to stop; experts are stopped at in any case where the block has some.
            experts_at_once: How many experts stop at their first inputs, one after the other,
                before they stop at their second ones.

        Yields:
            The shared inputs in the order of computation.
        """
        self._done = True
        kind = self._model.adapter.layout.kind(block.index)
        dense = {
            kind.modules.get(shared.linears[0], shared.linears[0]): shared
            for shared in wanted
            if shared.expert is None
        }
        experts = {
            (kind.modules[shared.linears[0]].partition(".*.")[0], _is_down(kind, shared)): shared
            for shared in kind.inputs
            if shared.experts
        }
        names = {shared.name for shared in wanted}
        for stops in self._walk.stops(block.index, list(dense), experts_at_once):
            first = stops[0]
            if first.kind == "linear":
                shared = dense[first.name]
            else:
                assert first.expert is not None
                shared = experts[first.name, first.down].of_expert(first.expert)
                if shared.name not in names:
                    continue
            yield Standing(
                shared,
                [stop.value for stop in stops],
                [stop.everyone for stop in stops if stop.everyone is not None],
                [
                    stop.rows + number * self._batch_tokens
                    for number, stop in enumerate(stops[: self._of_tokens])
                    if stop.rows is not None
                ],
            )

    def tried(self, block: Block) -> list[Tensor]:
        """What a block that the tokens stand before gives for each batch; they stay there."""
        return self._walk.tried(block.index)

    def experts_held(self, block: Block) -> AbstractContextManager[None]:
        """Holds the weights of all experts of a block, for :meth:`tried`."""
        return self._walk.experts_held(block.index)

    def modules(self, block: Block, linears: Iterable[str]) -> list[torch.nn.Module]:
        """The modules of linears, without those of experts, which have none of their own."""
        kind = self._model.adapter.layout.kind(block.index)
        whole = self._model.reader.skeleton.blocks[block.index]
        return [
            whole.get_submodule(kind.modules.get(linear, linear))
            for linear in linears
            if without_expert(linear) == linear
        ]

    @contextmanager
    def attending(
        self, block: Block, seen: Callable[[Attention, Tensor, Tensor, Tensor], None] | None
    ) -> Iterator[None]:
        """Shows queries, keys and values of a block that is computed meanwhile.

        Args:
            block: The block that the tokens stand before.
            seen: Is given them, ``[samples, heads, tokens, width]`` each, and the module's record;
                None to show them to nobody.
        """
        with ExitStack() as handles:
            if seen is not None:
                whole = self._model.reader.skeleton.blocks[block.index]
                for each in block.attention:
                    module = whole.get_submodule(each.module)
                    handles.callback(at_attention(module, partial(seen, each)).remove)
            yield

    def pass_through(self, block: Block) -> None:
        """Computes a block without stopping."""
        for _ in self.standings(block, ()):
            pass

    def head_inputs(self) -> Iterator[Tensor]:
        """What the head reads of each batch, after the last block; they go no further.

        Yields:
            ``[..., in_features]``.
        """
        return self._walk.head_inputs()

    def boundary(self) -> dict[str, Tensor]:
        """What the block that was just computed hands on, on the CPU, in the dtype of the model."""
        return joined(self._walk.boundaries(), self._of_tokens, self._model.adapter.layout.axes)

    def close(self) -> None:
        """Ends the walk early."""
        self._walk.close()


def _is_down(kind: Any, shared: SharedInput) -> bool:
    return kind.modules[shared.linears[0]].endswith(".down_proj")
