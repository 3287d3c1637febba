"""The tensors of one block by their names in the checkpoint: no modules, and no forward."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

import torch
from torch import Tensor

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.tensors import read_slice, read_tensor
from quantlib.models.family import ModelFamily
from quantlib.models.layout import ANY_EXPERT, Experts, of_expert, without_expert


class StoredTensors(MutableMapping[str, Tensor]):
    """The tensors of a block by name within it, in float32; each is read when it is asked for.

    Linears of an expert have names of their own, also where those of all experts lie together. What
    is set is kept until it is forgotten.
    """

    def __init__(
        self, adapter: ModelFamily, checkpoint: Checkpoint, index: int, device: torch.device
    ) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._prefix = adapter.block_prefix(index)
        kind = adapter.layout.kind(index)
        self._modules = kind.modules
        self._mixtures = {experts.module: experts for experts in kind.experts}
        self._names = adapter.block_tensors(checkpoint, index)
        self._set: dict[str, Tensor] = {}
        self._expert: tuple[str, dict[str, Tensor]] = ("", {})  # read last

    def __getitem__(self, name: str) -> Tensor:
        found = self._set.get(name)
        if found is not None:
            return found
        if self._prefix + name in self._checkpoint.tensors:
            return self._ready(read_tensor(self._checkpoint, self._prefix + name))
        if (place := self._of_expert(name)) is not None:
            experts, number, matrix = place
            return self._ready(self._matrices(experts, number)[matrix])
        raise KeyError(name)

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._set[name] = value

    def __delitem__(self, name: str) -> None:
        del self._set[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            name in self._set
            or self._prefix + name in self._checkpoint.tensors
            or self._of_expert(name) is not None
        )

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._names)

    def __len__(self) -> int:
        return len(self._names)

    def was_set(self, name: str) -> bool:
        """Whether a tensor is not the checkpoint's any more."""
        return name in self._set

    def forget(self, linear: str) -> None:
        """Frees what was set of a linear that is done."""
        self._set.pop(f"{linear}.weight", None)

    def _ready(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, torch.float32)

    def _of_expert(self, name: str) -> tuple[Experts, int, str] | None:
        """The mixture, the expert and the matrix of it that a weight is."""
        linear, _, part = name.rpartition(".")
        template = without_expert(linear)
        module, _, matrix = self._modules.get(template, "").rpartition(f".{ANY_EXPERT}.")
        experts = self._mixtures.get(module)
        if part != "weight" or experts is None or template == linear:
            return None
        before, _, after = template.partition(ANY_EXPERT)
        return experts, int(linear.removeprefix(before).removesuffix(after)), matrix

    def _matrices(self, experts: Experts, number: int) -> dict[str, Tensor]:
        """The matrices of one expert, ``[out_features, in_features]``, as they are stored."""
        key = f"{experts.module}.{number}"
        if self._expert[0] != key:
            self._expert = (key, dict(self._read(experts, number)))
        return self._expert[1]

    def _read(self, experts: Experts, number: int) -> Iterator[tuple[str, Tensor]]:
        for parameter, parts in experts.parts.items():
            if parameter.endswith("bias"):
                continue
            read = [self._part(part, number) for part in parts]
            whole = torch.cat(read) if len(read) > 1 else read[0]
            if experts.transposed:
                whole = whole.t()
            if parameter != "gate_up_proj":
                yield parameter, whole
            elif experts.interleaved:
                yield "gate_proj", whole[0::2]
                yield "up_proj", whole[1::2]
            else:
                yield from zip(("gate_proj", "up_proj"), whole.chunk(2), strict=True)

    def _part(self, name: str, number: int) -> Tensor:
        if ANY_EXPERT in name:
            return read_tensor(self._checkpoint, self._prefix + of_expert(name, number))
        return read_slice(self._checkpoint, self._prefix + name, number)
