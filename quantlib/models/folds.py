"""Finds where the scales of a shared input can be folded, by trying.

A block of real size is filled with made-up weights that take no memory: a large linear adds up a
few of its inputs for each output, with random factors. Then every
norm and linear of a fitting size before the input is tried, the last first: if its channels are
divided by scales and the input of the linears is multiplied by them, the block gives what it gave.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.models.boundary import first_tensor
from quantlib.models.experts import expert_inner, prepare_experts
from quantlib.models.layout import Producer
from quantlib.models.skeleton import Skeleton, free

_TOLERANCE = 1e-3
_LARGE = 1 << 16
"""Parameters with more elements are made up, smaller ones drawn."""

_TERMS = 6
"""Inputs that an output of a large linear is made of."""

_EXPERTS = 8
"""Experts that are computed; the others give nothing."""

_REPEATS = "num_key_value_groups"
"""Where attention says how many heads share a key and a value."""

_MOST_PARTS = 3
"""Of how many equal parts of a linear's output one may be what is looked for."""


class NotFoldableError(Exception):
    """A block cannot be computed with made-up weights, so that no fold can be tried."""


class FoldFinder:
    """A block with made-up weights.

    The names that it takes and gives are those of modules.
    """

    def __init__(
        self, skeleton: Skeleton, index: int, arguments: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Fills the block; :meth:`close` frees it.

        Args:
            skeleton: The model.
            index: Which block.
            arguments: What the model calls it with; what is no number there is drawn.
            kwargs: The same by name.

        Raises:
            NotFoldableError: The block cannot be computed so.
        """
        self._block = skeleton.blocks[index]
        self._generator = torch.Generator().manual_seed(0)
        self._arguments, self._kwargs = self._drawn(arguments), self._drawn(dict(kwargs))
        self._head_dim = _head_dim(skeleton, index)
        self._experts = skeleton.experts[index]
        self._order: list[str] = []
        self._norm_calls: dict[str, tuple[Any, Any, Tensor]] = {}
        self._inputs: dict[str, Tensor | None] = {}
        _fill(skeleton, index, self._generator)
        try:
            self._expected = self._first_run()
        except Exception:  # such as of a block that reads a weight by itself
            self.close()
            _fill(skeleton, index, self._generator, whole=True)
            try:
                self._expected = self._first_run()
            except Exception as error:  # whatever the family's code makes of such weights
                self.close()
                raise NotFoldableError from error

    def close(self) -> None:
        """Frees the block."""
        free(self._block)
        for linear in self._block.modules():
            linear.__dict__.pop("forward", None)
        for module in self._experts.values():
            module.walked_weights = {}
            module.walked_limit = None
            if "Llama4" in type(module).__name__:
                prepare_experts(module, module.walked_block, module.walked_name)

    def producer_of(self, linears: Sequence[str]) -> Producer | None:
        """What the scales of an input can be folded into.

        Args:
            linears: All linears that read it.

        Returns:
            The producer by the name of its module; None where there is none.
        """
        first: Any = self._block.get_submodule(linears[0])
        columns = int(first.in_features)
        before = self._order[: self._order.index(linears[0])]
        for name in reversed(before):
            for candidate in self._candidates(name, columns):
                if self._works(candidate, linears, columns):
                    return candidate
        return None

    def gate_is_linear(self, name: str) -> bool:
        """Whether the experts' down projections read their up projections' outputs as factors."""
        module: Any = self._experts[name]
        weights = dict(module.walked_weights[0])
        hidden = weights["gate_up_proj" if module.has_gate else "up_proj"]
        width = hidden.shape[0 if module.is_transposed else 1]
        x = torch.randn(8, width, generator=self._generator)
        from quantlib.models.experts import bias_views, linear_views

        copied = {key: value.clone() for key, value in weights.items()}
        up = linear_views(module, copied)["up_proj"]
        scales = torch.rand(len(up), generator=self._generator) + 0.5
        expected = expert_inner(module, copied, x)
        up.div_(scales[:, None])
        if "up_proj" in (biases := bias_views(module, copied)):
            biases["up_proj"].div_(scales)
        return _close(expert_inner(module, copied, x) * scales, expected)

    def _candidates(self, name: str, columns: int) -> Iterator[Producer]:
        module: Any = self._block.get_submodule(name)
        if not isinstance(module, nn.Linear):
            width = len(module.weight)
            if columns % width == 0 and (offset := self._offset_of(name)) is not None:
                repeats = columns // width
                head_dim = 1 if repeats == 1 else width
                yield Producer(
                    name=name, norm=True, offset=offset, head_dim=head_dim, repeats=repeats
                )
            return
        for repeats in self._repeats(columns):
            wanted = columns // repeats
            parts, rest = divmod(module.out_features, wanted)
            starts = {module.out_features - wanted, 0}
            if not rest and parts <= _MOST_PARTS:
                starts |= {part * wanted for part in range(parts)}
            for start in sorted((start for start in starts if start >= 0), reverse=True):
                head_dim = 1 if repeats == 1 else self._head_dim
                yield Producer(name=name, first_row=start, head_dim=head_dim, repeats=repeats)

    def _repeats(self, columns: int) -> list[int]:
        heads, rest = divmod(columns, self._head_dim)
        if rest:
            return [1]
        said: set[int] = {
            int(getattr(module, _REPEATS))
            for module in self._block.modules()
            if hasattr(module, _REPEATS)
        }
        tried = sorted({1, *said}) if said else range(1, heads + 1)
        return [repeats for repeats in tried if heads % repeats == 0]

    def _offset_of(self, name: str) -> float | None:
        """What a norm adds to its weight; None where its output does not follow the weight."""
        module: Any = self._block.get_submodule(name)
        arguments, kwargs, expected = self._norm_calls[name]
        weight = module.weight.clone()
        scales = torch.rand(len(weight), generator=self._generator) + 0.5
        try:
            for offset in (0.0, 1.0):
                module.weight.copy_((weight + offset) / scales - offset)
                if _close(first_tensor(module(*arguments, **kwargs)) * scales, expected):
                    return offset
        finally:
            module.weight.copy_(weight)
        return None

    def _works(self, candidate: Producer, linears: Sequence[str], columns: int) -> bool:
        channels = torch.arange(columns)
        heads = channels // (candidate.head_dim * candidate.repeats)
        rows = candidate.first_row + heads * candidate.head_dim + channels % candidate.head_dim
        module: Any = self._block.get_submodule(candidate.name)
        width = len(module.weight)
        if int(rows.max()) >= width:
            return False
        divisors = torch.ones(width)
        touched = rows.unique()
        divisors[touched] = torch.rand(len(touched), generator=self._generator) + 0.5
        scales = divisors[rows]

        def multiply(name: str) -> Callable[..., Any]:
            def hook(_: nn.Module, given: Any) -> Any:
                x = given[0] * scales
                expected = self._inputs[name]
                if expected is not None and not _close(x, expected):
                    raise _OtherwiseError  # most candidates: what comes after need not be computed
                return (x, *given[1:])

            return hook

        handles = [
            self._block.get_submodule(name).register_forward_pre_hook(multiply(name))
            for name in linears
        ]
        weight = module.weight
        try:
            if candidate.norm:
                offset = candidate.offset
                module.weight = nn.Parameter((weight + offset) / divisors - offset, False)
            else:
                handles.append(module.register_forward_hook(lambda _, __, y: y / divisors))
            return _close(self._run(), self._expected)
        except (_OtherwiseError, RuntimeError):  # such as of a linear that gives no such channels
            return False
        finally:
            module.weight = weight
            for handle in handles:
                handle.remove()

    def _first_run(self) -> Tensor:
        self._order.clear()
        self._inputs.clear()
        with self._watched():
            return self._run()

    def _run(self) -> Tensor:
        kwargs = {
            name: copy(value) if isinstance(value, (dict, UserDict)) else value
            for name, value in self._kwargs.items()
        }
        return first_tensor(self._block(*self._arguments, **kwargs)).clone()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Notes in which order norms and linears are computed, and what they are called with."""
        handles = []

        def watch(name: str, module: nn.Module) -> None:
            def hook(_: nn.Module, arguments: Any, kwargs: Any, output: Any) -> None:
                if name in self._order:
                    self._order.remove(name)
                self._order.append(name)
                if isinstance(module, nn.Linear):
                    once = name not in self._inputs
                    self._inputs[name] = arguments[0].clone() if once else None
                else:
                    self._norm_calls[name] = (arguments, kwargs, first_tensor(output).clone())

            handles.append(module.register_forward_hook(hook, with_kwargs=True))

        for name, module in self._block.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and (
                isinstance(module, nn.Linear) or weight.dim() == 1
            ):
                watch(name, module)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _drawn(self, value: Any) -> Any:
        """Random numbers for hidden states, and for whatever depends on the embedding."""
        if isinstance(value, Tensor) and value.device.type == "meta":
            return torch.randn(value.shape, generator=self._generator).to(value.dtype)
        if isinstance(value, Tensor) and value.is_floating_point():
            first = value.flatten()[:1]
            if not value.numel() or first.isnan().any() or value.stride().count(0) == value.dim():
                return torch.randn(value.shape, generator=self._generator).to(value.dtype)
            return value
        if isinstance(value, tuple):
            return tuple(map(self._drawn, value))
        if isinstance(value, (dict, UserDict)):
            return {key: self._drawn(item) for key, item in value.items()}
        return value


def _head_dim(skeleton: Skeleton, index: int) -> int:
    text = skeleton.text_config
    if text.is_heterogeneous:  # blocks have sizes of their own
        text = text.per_layer_config[index]
    given = getattr(text, "head_dim", None)
    return int(given or text.hidden_size // getattr(text, "num_attention_heads", 1))


def _fill(
    skeleton: Skeleton, index: int, generator: torch.Generator, *, whole: bool = False
) -> None:
    """Fills a block.

    Args:
        skeleton: The model.
        index: Which block.
        generator: Draws the numbers.
        whole: Whether large linears get a matrix, and not only something that they do.
    """
    block = skeleton.blocks[index]
    experts: dict[int, Any] = {id(module): module for module in skeleton.experts[index].values()}
    for module in block.modules():
        if id(module) in experts:
            one = {
                name: _made_up(parameter[0], generator).contiguous()
                for name, parameter in module.named_parameters()
            }
            experts[id(module)].walked_weights = _OfAll(one)
            experts[id(module)].walked_limit = _EXPERTS
            continue
        if (
            isinstance(module, nn.Linear)
            and type(module).forward is nn.Linear.forward  # some routers are linears that do more
            and module.weight.numel() > _LARGE
            and not whole
        ):
            module.__dict__["forward"] = _cheap(module, generator)
            continue
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            filled = nn.Parameter(_made_up(parameter, generator), requires_grad=False)
            if parameter.dim() > 1:
                filled._is_hf_initialized = True  # type: ignore[attr-defined]
            module._parameters[name] = filled
    skeleton.compute_buffers(index, torch.device("cpu"))
    skeleton.initialize(index)
    for module in block.modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() == 1:
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)


def _cheap(linear: nn.Linear, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """What stands for a large linear: each output is a sum of a few inputs."""
    shifts = torch.randint(linear.in_features, (_TERMS,), generator=generator).tolist()
    factors = torch.randn(_TERMS, linear.out_features, generator=generator) * _TERMS**-0.5
    bias = torch.zeros(())
    if linear.bias is not None:
        bias = torch.randn(linear.out_features, generator=generator) * 0.1
    copies = 1 + -(-linear.out_features // linear.in_features)

    def forward(x: Tensor) -> Tensor:
        y = bias.expand(*x.shape[:-1], linear.out_features)
        repeated = torch.cat([x] * copies, -1)  # so that shifted inputs are views
        for shift, factor in zip(shifts, factors, strict=True):
            y = torch.addcmul(y, repeated[..., shift : shift + linear.out_features], factor)
        return y

    return forward


class _OtherwiseError(Exception):
    """The input of a linear is another than it was."""


class _OfAll(dict[int, Any]):
    """The same weights for every expert."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self._weights = weights

    def __contains__(self, expert: object) -> bool:
        return True

    def __getitem__(self, expert: int) -> Any:
        return self._weights


def _made_up(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """A float32 tensor of the shape of a parameter; a large matrix takes no memory."""
    if parameter.dim() == 2 and parameter.numel() > _LARGE:
        rows, columns = parameter.shape
        numbers = torch.randn(rows + columns, generator=generator) * columns**-0.5
        return numbers.as_strided((rows, columns), (1, 1))
    scale = 0.1 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
    return torch.randn(parameter.shape, generator=generator) * scale


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return torch.allclose(
        found, expected, rtol=_TOLERANCE, atol=_TOLERANCE * float(expected.abs().max())
    )
