"""A model's own forward, stopped and gone on with: block by block, input by input.

The base model's forward runs once per batch, each in a greenlet of its own. It stops before every
block, whose weights are read when all batches stand there and freed when all have left; at the
first linear of every shared input; at both inputs of every expert; and after the block. Whatever
passes from block to block besides hidden states stays where the model puts it.

Greenlets share the thread's modes: gradients, autocast and the current stream belong to whoever
resumes them, and a forward may not stop where it has changed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import greenlet
import torch
from torch import Tensor, nn

from quantlib.models.boundary import Boundary, added, first_tensor, written_dicts
from quantlib.models.experts import count_of, linear_views
from quantlib.models.reading import Reader
from quantlib.models.skeleton import Skeleton, free


@dataclass(frozen=True)
class Stop:
    """A forward that stands before something.

    Attributes:
        kind: ``block``, ``linear``, ``expert``, ``end`` or, after the last block, ``head``.
        block: Index of the block.
        name: The module within the block.
        value: The input; of a block its arguments, at its end what it gives.
        kwargs: The block's other arguments.
        expert: Which expert.
        down: Whether it is the input of the expert's down projection.
        everyone: What gives the expert's input if all tokens came to it.
        rows: Which of the batch's tokens came to the expert.
    """

    kind: str
    block: int
    name: str = ""
    value: Any = None
    kwargs: Mapping[str, Any] | None = None
    expert: int | None = None
    down: bool = False
    everyone: Callable[[], Tensor] | None = None
    rows: Tensor | None = None


def halt(stop: Stop) -> Any:
    """Hands a stop to whoever resumes this forward; does nothing outside of a walk."""
    parent = greenlet.getcurrent().parent
    return None if parent is None else parent.switch(stop)


def _modes() -> tuple[bool, bool, bool, bool]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


class Forward:
    """One batch on its way through the model."""

    def __init__(self, body: Callable[[], object]) -> None:
        def run(_: Any) -> None:
            body()

        self._greenlet = greenlet.greenlet(run)
        self._modes = _modes()

    def go(self, answer: Any = None) -> Stop | None:
        """Goes on to the next stop.

        Args:
            answer: What the stop before is answered with: other arguments or another output.

        Returns:
            The stop; None at the end of the forward.
        """
        stop = self._greenlet.switch(answer)
        if _modes() != self._modes:
            where = "its end" if stop is None else f"{stop.kind} {stop.name} of block {stop.block}"
            raise RuntimeError(f"gradients or autocast are not what they were, at {where}")
        return stop

    def close(self) -> None:
        """Ends a forward that is not wanted any more."""
        if self._greenlet:
            self._greenlet.throw(greenlet.GreenletExit)


class Hooks:
    """The places where forwards stop."""

    def __init__(self, skeleton: Skeleton, blocks: range, *, to_head: bool = False) -> None:
        self._handles: list[Any] = []
        if to_head:
            head = skeleton.model.get_output_embeddings()
            self._handles.append(head.register_forward_pre_hook(_at_head(blocks.stop - 1)))
        self._experts = [module for index in blocks for module in skeleton.experts[index].values()]
        for index in blocks:
            block = skeleton.blocks[index]
            self._handles += [
                block.register_forward_pre_hook(_before(index), with_kwargs=True),
                block.register_forward_hook(_after(index)),
            ]
        for module in self._experts:
            module.walked_halt = _at_expert

    def at(self, block: nn.Module, index: int, leaders: Sequence[str]) -> list[Any]:
        """Stops at linears of a block, too."""
        handles = []
        for name in leaders:
            hook = _at_linear(index, name)
            handles.append(block.get_submodule(name).register_forward_pre_hook(hook))
        return handles

    def remove(self) -> None:
        """Lets forwards run through."""
        for handle in self._handles:
            handle.remove()
        for module in self._experts:
            module.walked_halt = None


def _before(index: int) -> Callable[..., Any]:
    return lambda _module, arguments, kwargs: halt(
        Stop("block", index, value=arguments, kwargs=kwargs)
    )


def _after(index: int) -> Callable[..., Any]:
    return lambda _module, _arguments, output: halt(Stop("end", index, value=output))


def _at_linear(index: int, name: str) -> Callable[..., Any]:
    def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        halt(Stop("linear", index, name, arguments[0]))

    return hook


def _at_head(index: int) -> Callable[..., Any]:
    return lambda _module, arguments: halt(Stop("head", index, value=arguments[0]))


def _at_expert(
    module: Any,
    expert: int,
    down: bool,
    x: Tensor,
    everyone: Callable[[], Tensor],
    rows: Tensor,
) -> None:
    halt(
        Stop(
            "expert",
            module.walked_block,
            module.walked_name,
            x,
            expert=expert,
            down=down,
            everyone=everyone,
            rows=rows,
        )
    )


class Walk:
    """All batches on their way through a range of blocks.

    Attributes:
        reader: Reads the weights.
        blocks: The range.
    """

    def __init__(
        self,
        reader: Reader,
        batches: Iterable[Mapping[str, Any]],
        blocks: range,
        boundaries: Sequence[Boundary] | None = None,
        *,
        to_head: bool = False,
    ) -> None:
        """Starts the forwards and brings them to the first block.

        Args:
            reader: Reads the weights; what lies outside of the blocks is read.
            batches: The arguments of the base model's forward, for each batch; the next is asked
                for when the one before stands at the first block.
            blocks: The blocks to go through.
            boundaries: What stood before the first of them, for each batch; None where that is the
                model's first block.
            to_head: Whether they go on to the head after the last block.
        """
        self.reader = reader
        self._to_head = to_head
        self.blocks = blocks
        skeleton = reader.skeleton
        self._hooks = Hooks(skeleton, blocks, to_head=to_head)
        self._skipped = [skeleton.blocks[index] for index in range(blocks.start)]
        self._forwards = []
        self._at: list[Stop | None] = []
        self._dicts: list[dict[str, Any]] = []
        self._given: list[dict[str, Any]] = []
        for number, batch in enumerate(batches):
            boundary = None if boundaries is None else boundaries[number]
            forward = Forward(self._body(dict(batch)))
            with _replaced(self._skipped, boundary):
                stop = forward.go()
            if stop is None or stop.block != blocks.start:
                raise RuntimeError(f"the forward does not come to block {blocks.start}")
            dicts = written_dicts(stop.kwargs or {})
            self._given.append({name: dict(content) for name, content in dicts.items()})
            if boundary is not None and stop.kwargs is not None:
                boundary.restore(stop.kwargs)
            self._dicts.append(dicts)
            self._forwards.append(forward)
            self._at.append(stop)

    def _body(self, batch: dict[str, Any]) -> Callable[[], None]:
        skeleton = self.reader.skeleton
        whole = skeleton.model if self._to_head else skeleton.base

        def body() -> None:
            whole(**batch, use_cache=False)

        return body

    def enter(self, index: int) -> nn.Module:
        """Reads a block that all batches stand before."""
        self.reader.read_block(index)
        return self.reader.skeleton.blocks[index]

    def stops(
        self, index: int, leaders: Sequence[str] = (), experts_at_once: int = 1
    ) -> Iterator[list[Stop]]:
        """Computes a block, all batches going from stop to stop together.

        Args:
            index: The block that they stand before.
            leaders: The linears to stop at, within the block.
            experts_at_once: How many experts stop at their first inputs before the first of them
                goes on to its second; the weights of all of these are at hand.

        Yields:
            One stop for each batch. While they stand there the weights behind the stop may be
            changed.
        """
        skeleton = self.reader.skeleton
        handles = self._hooks.at(skeleton.blocks[index], index, leaders)
        mixtures = skeleton.experts[index].values()
        computed = False  # the experts whose weights are at hand
        try:
            for module in mixtures:
                module.walked_at_once = experts_at_once
            self._go()
            while (stop := self._first()).kind != "end":
                if stop.kind == "expert":
                    assert stop.expert is not None
                    if not stop.down:
                        if computed:
                            _forget(mixtures)
                        module = skeleton.experts[index][stop.name]
                        read = self.reader.read_expert(module, stop.expert)
                        module.walked_weights[stop.expert] = read
                    computed = stop.down
                yield [at for at in self._at if at is not None]
                self._go()
        finally:
            _forget(mixtures)
            for handle in handles:
                handle.remove()

    def tried(self, index: int) -> list[Tensor]:
        """What a block gives for each batch with its weights as they are, none going on."""
        block, found = self.reader.skeleton.blocks[index], []
        for stop in self._at:
            assert stop is not None
            kwargs = dict(stop.kwargs or {})
            # Blocks write to dicts, such as keys that later blocks share.
            kwargs |= {name: copy(each) for name, each in written_dicts(kwargs).items()}
            found.append(first_tensor(block(*stop.value, **kwargs)))
        return found

    @contextmanager
    def experts_held(self, index: int) -> Iterator[None]:
        """The weights of all experts of a block at hand."""
        mixtures = self.reader.skeleton.experts[index].values()
        for module in mixtures:
            for expert in range(count_of(module)):
                module.walked_weights[expert] = self.reader.read_expert(module, expert)
        try:
            yield
        finally:
            _forget(mixtures)

    def leave(self, index: int) -> None:
        """Frees a block that is computed, and goes on to the next."""
        free(self.reader.skeleton.blocks[index])
        if index + 1 < self.blocks.stop:
            self._go()

    def expert_linears(self, stop: Stop) -> dict[str, Tensor]:
        """The matrices of the expert that the batches stand at, as views that can be written."""
        module = self.reader.skeleton.experts[stop.block][stop.name]
        return linear_views(module, module.walked_weights[stop.expert])

    def outputs(self) -> list[Tensor]:
        """Hidden states after the block whose end the batches stand at."""
        return [first_tensor(stop.value) for stop in self._at if stop is not None]

    def head_inputs(self) -> Iterator[Tensor]:
        """What the head reads of each batch; they stand at the end of the last block, and go.

        Yields:
            ``[..., in_features]``, of one batch at a time.
        """
        for number, forward in enumerate(self._forwards):
            self._at[number] = None
            stop = forward.go()
            if stop is None or stop.kind != "head":
                raise RuntimeError("the forward does not come to the head")
            yield stop.value
            del stop
            forward.close()

    def boundaries(self) -> list[Boundary]:
        """What each batch brings to the next block, while they stand at the end of one."""
        return [
            Boundary(stop.value, added(dicts, given))
            for stop, dicts, given in zip(self._at, self._dicts, self._given, strict=True)
            if stop is not None
        ]

    def _first(self) -> Stop:
        first = self._at[0]
        if first is None:
            raise RuntimeError("the forward ended within a block")
        return first

    def _go(self) -> None:
        for number, forward in enumerate(self._forwards):
            self._at[number] = None  # its tensors are the forward's alone
            self._at[number] = forward.go()

    def close(self) -> None:
        """Ends all forwards."""
        for forward in self._forwards:
            forward.close()
        self._forwards.clear()
        self._at.clear()
        self._hooks.remove()


def _forget(mixtures: Iterable[Any]) -> None:
    """Frees the weights of experts."""
    for module in mixtures:
        module.walked_weights.clear()


@contextmanager
def _replaced(blocks: Sequence[nn.Module], boundary: Boundary | None) -> Iterator[None]:
    """Lets blocks that are computed elsewhere give what came out of the last of them."""
    if boundary is None:
        yield
        return
    for block in blocks:
        block.forward = lambda *_, **__: boundary.output
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
