"""Finds out what a model is made of, without reading a weight.

The forward outside of the blocks runs on a few tokens and zeros that take no memory, and every
block on the meta device. Linears whose input is the same tensor share it, whoever computes what in
between; where scales can be folded is found by trying (:mod:`quantlib.models.folds`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.models.attention import Handed, at_attention
from quantlib.models.boundary import Boundary, added, root_of, written_dicts
from quantlib.models.skeleton import NotWalkableError, Skeleton, free
from quantlib.models.walk import Forward, Hooks, Stop

_SAMPLES, _LENGTH = 7, 11
"""Sizes that no model has otherwise, so that the axis of the samples can be told."""

_TOKEN = 5


@dataclass(frozen=True)
class Call:
    """How the model calls one of its blocks: real tensors, of a few tokens."""

    arguments: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """What one block did: its inputs in order, each with the linears that read it, and its call.

    An input of experts has the name of their module, and whether it is that of what leads back.
    Modules that attend have heads of queries, heads of keys, and channels of one of these.
    """

    inputs: list[tuple[list[str], tuple[str, bool] | None]]
    call: Call
    attention: dict[str, tuple[int, int, int]]


def look(skeleton: Skeleton) -> tuple[list[Seen], dict[str, int], bool]:
    """Runs the model with its blocks on the meta device, or on zeros where values decide the way.

    Returns:
        What each block did; the axis of the samples in what crosses between blocks, where it is not
        the first; and whether blocks after the first need the tokens or their embedding.

    Raises:
        NotWalkableError: The model cannot be run so.
    """
    _fill_outer(skeleton)
    try:
        found = _run(skeleton, _to_meta)
    except NotWalkableError as error:
        for module in skeleton.blocks.modules():
            _fill(module, 0.0)
        try:
            found = _run(skeleton, lambda tensor: tensor)
        except NotWalkableError:
            raise error from None
        finally:
            free(skeleton.blocks)
    seen, axes, crosses = found
    return seen, axes, crosses or not _starts_without_tokens(skeleton)


def _run(
    skeleton: Skeleton, moved: Callable[[Tensor], Tensor]
) -> tuple[list[Seen], dict[str, int], bool]:
    """The same, ``moved`` giving what blocks get of each tensor."""
    seen: list[Seen] = []
    axes: dict[str, int] = {}
    crosses = False
    hooks = Hooks(skeleton, range(len(skeleton.blocks)))
    handles: list[Any] = []
    attending: dict[str, tuple[int, int, int]] = {}
    for index, block in enumerate(skeleton.blocks):
        linears = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
        handles += hooks.at(block, index, linears)
        for name, module in block.named_modules():
            handles.append(at_attention(module, _noting(attending, name)))
    tokens = torch.full((_SAMPLES, _LENGTH), _TOKEN)
    forward = Forward(lambda: skeleton.base(input_ids=tokens, use_cache=False))
    try:
        for index, (found, output, dicts) in enumerate(_blocks(forward, skeleton, moved)):
            seen.append(replace(found, attention=dict(attending)))
            attending.clear()
            axes |= _axes(Boundary(output, dicts))
            given = (found.call.arguments, found.call.kwargs)
            crosses = (
                crosses or _holds(given, _is_tokens) or (bool(index) and _holds(given, _is_nan))
            )
    except Exception as error:
        raise NotWalkableError.one(
            "config.json",
            f"{type(skeleton.model).__name__} cannot be walked: {type(error).__name__}: {error}",
            "add an adapter: docs/extension_guide.md",
        ) from error
    finally:
        forward.close()
        for handle in handles:
            handle.remove()
        hooks.remove()
    return seen, axes, crosses


def _noting(found: dict[str, tuple[int, int, int]], name: str) -> Handed:
    """Notes under a name what heads a module attends with."""

    def note(query: Tensor, key: Tensor, _value: Tensor) -> None:
        found[name] = (query.shape[1], key.shape[1], key.shape[-1])

    return note


def _starts_without_tokens(skeleton: Skeleton) -> bool:
    """Whether the forward comes to its blocks by hidden states alone, without the embedding."""
    free(skeleton.model.get_input_embeddings())
    hidden = torch.zeros(()).expand(_SAMPLES, _LENGTH, skeleton.text_config.hidden_size)
    hooks = Hooks(skeleton, range(1))
    forward = Forward(lambda: skeleton.base(inputs_embeds=hidden, use_cache=False))
    try:
        stop = forward.go()
    except Exception:  # whatever the family's code makes of it
        return False
    finally:
        forward.close()
        hooks.remove()
    return stop is not None and stop.kind == "block"


def _blocks(
    forward: Forward, skeleton: Skeleton, moved: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Seen, Any, Mapping[str, Mapping[Any, Any]]]]:
    """Lets the forward go through all blocks; yields what each did, its output and its dicts."""
    stop = forward.go()
    given: dict[str, dict[Any, Any]] | None = None
    for index in range(len(skeleton.blocks)):
        if stop is None or stop.kind != "block" or stop.block != index:
            raise ValueError(f"block {index} is not computed in its turn")
        call = Call(stop.value, dict(stop.kwargs or {}))
        dicts = written_dicts(call.kwargs)
        if given is None:
            given = {name: dict(content) for name, content in dicts.items()}
        inputs = _Inputs()
        stop = forward.go((_mapped(moved, stop.value), _mapped(moved, stop.kwargs)))
        while stop is not None and stop.kind != "end":
            inputs.add(stop)
            stop = forward.go()
        if stop is None:
            raise ValueError(f"the forward ends within block {index}")
        output = stop.value
        yield Seen(inputs.found, call, {}), output, added(dicts, given)
        stop = forward.go(_mapped(_zeros_like, output))


class _Inputs:
    """The inputs of a block, in the order in which they arise."""

    def __init__(self) -> None:
        self.found: list[tuple[list[str], tuple[str, bool] | None]] = []
        self._by_tensor: dict[Any, list[str]] = {}
        self._kept: list[Tensor] = []  # so that no address is taken twice

    def add(self, stop: Stop) -> None:
        if stop.kind == "expert":
            if all(of_experts != (stop.name, stop.down) for _, of_experts in self.found):
                self.found.append(([], (stop.name, stop.down)))
            return
        x = stop.value
        self._kept.append(x)
        key = (x.untyped_storage()._cdata, x.storage_offset(), x.numel(), x.shape[-1])
        linears = self._by_tensor.get(key)
        if linears is None:
            linears = self._by_tensor[key] = []
            self.found.append((linears, None))
        if stop.name not in linears:
            linears.append(stop.name)


def _fill_outer(skeleton: Skeleton) -> None:
    """Gives what lies outside of the blocks values that take no memory: zeros.

    The embedding gets what is no number, so that it can be seen where it comes to.
    """
    embedding = skeleton.model.get_input_embeddings()
    for name, module in skeleton.model.named_modules():
        if f"{name}.".startswith(skeleton.prefix):
            continue
        _fill(module, torch.nan if module is embedding else 0.0)
    skeleton.model.initialize_weights()


def _fill(module: nn.Module, value: float) -> None:
    """Gives a module's own parameters one value, which takes no memory, and its buffers zeros."""
    for part, parameter in list(module._parameters.items()):
        if parameter is not None:
            filled = torch.full((), value, dtype=parameter.dtype).expand(parameter.shape)
            new = nn.Parameter(filled, requires_grad=False)
            new._is_hf_initialized = True  # type: ignore[attr-defined]
            module._parameters[part] = new
    for part, buffer in list(module._buffers.items()):
        if buffer is not None:
            module._buffers[part] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def _zeros_like(tensor: Tensor) -> Tensor:
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def _mapped(function: Any, value: Any) -> Any:
    """A function on every tensor of nested tuples, lists and dicts.

    A dict that blocks write to is mapped in place: the model looks at that very one.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(function, item) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(function, item) for item in value)
    if type(value) is dict:
        return {key: _mapped(function, item) for key, item in value.items()}
    return value


def _holds(value: Any, what: Callable[[Tensor], bool]) -> bool:
    """Whether a tensor of nested tuples, lists and dicts is such a one."""
    if isinstance(value, Tensor):
        return value.device.type != "meta" and what(value)
    if isinstance(value, (list, tuple)):
        return any(_holds(item, what) for item in value)
    return isinstance(value, dict) and any(_holds(item, what) for item in value.values())


def _is_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isnan().any())


def _is_tokens(tensor: Tensor) -> bool:
    return tensor.shape == (_SAMPLES, _LENGTH) and bool((tensor == _TOKEN).all())


def _axes(boundary: Boundary) -> dict[str, int]:
    found = {}
    for name, tensor in boundary.tensors().items():
        axes = [axis for axis, size in enumerate(tensor.shape) if size == _SAMPLES]
        if len(axes) != 1:
            raise ValueError(f"{name} {list(tensor.shape)} of a block has no axis for samples")
        if axes[0]:
            found[root_of(name)] = axes[0]
    return found
