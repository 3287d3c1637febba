"""A simulated accelerator: tensors that are not on the CPU and do not meet those that are.

What a device refuses is refused, and everything else is computed by the CPU inside. Without a GPU
this runs every branch that is taken on one, and finds tensors that were left on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)

_MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
"""What may have tensors on both sides."""

_ASKING = {scaled_dot_product_attention, Tensor.__getitem__, Tensor.__setitem__}
"""What asks a device itself: for its kernels, or for an index that is a list."""


_within: ContextVar[bool] = ContextVar("within", default=False)
"""Whether a function of tensors on the device is at work, whose own ones are there too."""


class DeviceMismatchError(RuntimeError):
    """An operation was given tensors of the device and of the CPU."""


class DeviceTensor(Tensor):
    """A tensor on the device; its numbers are in ``inner``, on the CPU.

    To torch's own code in C++ it is on the meta device: a CUDA device would be asked for.
    """

    inner: Tensor
    device = property(lambda _: DEVICE)

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and not _is_device(device):
            return self.inner.to(device, dtype or self.dtype, copy=True)
        inner = self.inner if dtype is None else self.inner.to(dtype)
        return self if inner is self.inner else DeviceTensor(inner)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ASKING:
            return compute(func, args, kwargs)
        within = _within.set(kwargs.get("device") is None)
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        finally:
            _within.reset(within)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return compute(func, args, kwargs or {})


class Accelerator(TorchDispatchMode):
    """Makes tensors on the device where they are asked for.

    Attributes:
        calls: How often each operation ran on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        here = _is_device(kwargs.get("device"))
        if not here and not any(isinstance(leaf, DeviceTensor) for leaf in tree_leaves(args)):
            return func(*args, **kwargs)
        self.calls[func.overloadpacket.__name__] += 1
        return compute(func, args, kwargs)


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives on the device.

    Raises:
        DeviceMismatchError: It got a tensor of the CPU that is no single number.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    strangers = [each for each in tensors if not isinstance(each, DeviceTensor) and each.dim()]
    if here and strangers and func not in _MOVES:
        shapes = [(tuple(each.shape), each.dtype, each.device.type) for each in tensors]
        raise DeviceMismatchError(f"{func} of {shapes}")
    device = kwargs.get("device")
    on_device = bool(here) if device is None else _is_device(device)
    if _is_device(device):
        kwargs = {**kwargs, "device": "cpu"}
    inner_args, inner_kwargs = tree_map_only(DeviceTensor, lambda t: t.inner, (args, kwargs))
    given = func(*inner_args, **inner_kwargs)
    if torch.Tag.inplace_view in getattr(func, "tags", ()):
        raise NotImplementedError(f"{func} changes a tensor's shape in place")
    # In place, or into what was given for it: the same tensor comes back.
    known = {id(tensor.inner): tensor for tensor in here}

    def wrapped(tensor: Tensor) -> Tensor:
        if id(tensor) in known:
            return known[id(tensor)]
        return DeviceTensor(tensor) if on_device else tensor

    return tree_map_only(Tensor, wrapped, given)


def _is_device(device: Any) -> bool:
    if device is None:
        return False
    kind = torch.device(device).type
    return kind == DEVICE.type or (kind == "meta" and _within.get())


@contextmanager
def simulated_accelerator() -> Iterator[Accelerator]:
    """Lets torch see the accelerator as its one CUDA device."""
    with pytest.MonkeyPatch.context() as patch, Accelerator() as accelerator:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_name", lambda *_: "a simulated accelerator")
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor asks no driver
        try:
            yield accelerator
        finally:
            torch._C._set_only_lift_cpu_tensors(before)
