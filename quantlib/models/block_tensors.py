"""A block's tensors as they lie in transformers' modules, by what the checkpoint calls them."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from torch import Tensor

from quantlib.models.experts import bias_views, linear_views
from quantlib.models.family import ModelFamily
from quantlib.models.reading import Reader


class BlockTensors(MutableMapping[str, Tensor]):
    """The parameters of a block's modules by what the checkpoint calls them."""

    def __init__(self, reader: Reader, adapter: ModelFamily, index: int) -> None:
        self._skeleton = reader.skeleton
        self._targets = reader.names.target
        self._prefix = adapter.block_prefix(index)
        self._set: dict[str, Tensor] = {}
        self._index = index
        self._experts = {}
        for experts in adapter.layout.kind(index).experts:
            self._experts[experts.module] = experts
        self._modules = {
            linear: module
            for linear, module in adapter.layout.kind(index).modules.items()
            if "*" in linear
        }

    def __getitem__(self, name: str) -> Tensor:
        found = self._set.get(name)
        if found is None:
            found = self._parameter(name)
        if found is None:
            raise KeyError(name)
        return found

    def __setitem__(self, name: str, value: Tensor) -> None:
        parameter = self._parameter(name)
        if parameter is None:
            raise KeyError(name)
        self._set[name] = value
        parameter.copy_(value)

    def __delitem__(self, name: str) -> None:
        del self._set[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._set or self._parameter(name) is not None)

    def __iter__(self) -> Iterator[str]:
        return (
            name.removeprefix(self._prefix)
            for name in self._targets
            if name.startswith(self._prefix)
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def was_set(self, name: str) -> bool:
        """Whether a tensor is another than the checkpoint's."""
        return name in self._set

    def forget(self, linear: str) -> None:
        """Frees what was set of a linear that is done."""
        self._set.pop(f"{linear}.weight", None)

    def _parameter(self, name: str) -> Tensor | None:
        for linear, module in self._modules.items():
            if (view := self._of_expert(name, linear, module)) is not None:
                return view
        key = self._targets.get(self._prefix + name)
        if key is None:
            return None
        path, _, part = key.rpartition(".")
        found = getattr(self._skeleton.model.get_submodule(path), part)
        return found if isinstance(found, Tensor) and found.device.type != "meta" else None

    def _of_expert(self, name: str, linear: str, module: str) -> Tensor | None:
        linear_name, _, part = name.rpartition(".")
        before, _, after = linear.partition("*")
        if not (linear_name.startswith(before) and linear_name.endswith(after)):
            return None
        number = linear_name[len(before) : len(linear_name) - len(after)]
        path, _, own = module.rpartition(".*.")
        experts: Any = self._skeleton.experts[self._index].get(path)
        if not number.isdecimal() or experts is None:
            return None
        weights = experts.walked_weights.get(int(number))
        if weights is None:
            return None
        views = linear_views if part == "weight" else bias_views
        return views(experts, weights).get(own)
