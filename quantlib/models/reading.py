"""Reads the weights of a skeleton's modules when they are needed, and frees them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.tensors import read_slice, read_tensor
from quantlib.errors import InvalidInputError
from quantlib.models.experts import linear_views
from quantlib.models.layout import ANY_EXPERT, EXPERT_PARTS, of_expert
from quantlib.models.names import Names
from quantlib.models.skeleton import Skeleton, allocate_buffers


class Reader:
    """Puts weights of a checkpoint into the modules of a skeleton.

    Attributes:
        skeleton: The modules.
        checkpoint: The weights.
        names: Which tensor is which parameter.
        device: Where they go.
        dtype: The dtype of the parameters.
    """

    def __init__(
        self, skeleton: Skeleton, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.skeleton = skeleton
        self.checkpoint = checkpoint
        self.names = Names.of(skeleton, checkpoint.tensors)
        self.device = device
        self.dtype = dtype
        self._plan = _dtype_plan(skeleton.model, dtype)
        self._of_block = self._split_by_block()

    def read_outer(self, wanted: Callable[[str], bool]) -> None:
        """Reads what lies outside of the blocks, and computes its buffers.

        Args:
            wanted: Says of a parameter's name whether it is needed.
        """
        model = self.skeleton.model
        self._read(
            key
            for key in self._keys(self.names.target.values())
            if not key.startswith(self.skeleton.prefix) and wanted(key)
        )
        for name, module in model.named_modules():
            if not f"{name}.".startswith(self.skeleton.prefix) and wanted(f"{name}."):
                allocate_buffers(module, self.device)
        model.initialize_weights()
        for module in model.modules():  # blocks are initialized when they come
            if hasattr(module, "_is_hf_initialized"):
                del module._is_hf_initialized
        model.tie_weights()
        # transformers takes the device of a module's first parameter for that of all, and it may
        # be one of a tower that stays away.
        for module in (model, self.skeleton.base):
            name, first = next(module.named_parameters())
            if first.device.type == "meta":
                owner = module.get_submodule(name.rpartition(".")[0])
                zeros = torch.zeros((), dtype=first.dtype, device=self.device).expand(first.shape)
                _place(owner, name.rpartition(".")[2], zeros)

    def read_block(self, index: int) -> None:
        """Reads the weights of a block, apart from those of experts.

        Raises:
            InvalidInputError: The checkpoint lacks some of them.
        """
        prefix = f"{self.skeleton.prefix}{index}."
        block = self.skeleton.blocks[index]
        inner = tuple(f"{prefix}{name}." for name in self.skeleton.experts[index])
        self._read(key for key in self._of_block[index] if not (inner and key.startswith(inner)))
        missing = [
            name
            for name, parameter in block.named_parameters()
            if parameter.device.type == "meta" and not (prefix + name).startswith(inner or "\0")
        ]
        if missing:
            raise InvalidInputError.one(
                f"{prefix}{missing[0]}", f"the checkpoint lacks it, and {len(missing) - 1} more"
            )
        self.skeleton.compute_buffers(index, self.device)
        block.requires_grad_(False)

    def read_expert(self, module: Any, expert: int) -> dict[str, Tensor]:
        """One expert's slice of each parameter of a module with all experts.

        Raises:
            InvalidInputError: The checkpoint lacks some of them.
        """
        prefix = f"{self.skeleton.prefix}{module.walked_block}.{module.walked_name}."
        weights: dict[str, Tensor] = {}
        one_by_one: dict[str, Tensor] = {}
        for name, parameter in module.named_parameters():
            parts = self.names.expert_parts(prefix + name)
            if not parts:
                raise InvalidInputError.one(prefix + name, "the checkpoint lacks it")
            dtype = self._dtype(prefix + name, parameter)
            read = [self._expert_part(part, expert) for part in parts]
            if ANY_EXPERT in parts[0] and len(parts) == len(EXPERT_PARTS.get(name, ())):
                weights[name] = torch.empty(parameter.shape[1:], device=self.device, dtype=dtype)
                one_by_one.update(zip(EXPERT_PARTS[name], read, strict=True))
            else:
                whole = torch.cat(read) if len(read) > 1 else read[0]
                weights[name] = whole.to(self.device, dtype)
        if one_by_one:
            views = linear_views(module, weights)
            for linear, matrix in one_by_one.items():
                views[linear].copy_(matrix)
        return weights

    def _expert_part(self, name: str, expert: int) -> Tensor:
        if name not in self.checkpoint.tensors:
            return read_tensor(self.checkpoint, of_expert(name, expert))
        return read_slice(self.checkpoint, name, expert)

    def _split_by_block(self) -> dict[int, list[str]]:
        prefix = self.skeleton.prefix
        found: dict[int, list[str]] = {index: [] for index in range(len(self.skeleton.blocks))}
        for key in self._keys(self.names.target.values()):
            if key.startswith(prefix):
                found[int(key[len(prefix) :].partition(".")[0])].append(key)
        return found

    @staticmethod
    def _keys(targets: Iterable[str]) -> Iterable[str]:
        return dict.fromkeys(targets)

    def _read(self, keys: Iterable[str]) -> None:
        converted: dict[str, Any] = {}
        for key in keys:
            if key not in self.names.renamed:
                for name in self.names.converted[key]:
                    converted[name] = read_tensor(self.checkpoint, name)
                continue
            path, _, name = key.rpartition(".")
            module = self.skeleton.model.get_submodule(path)
            before = getattr(module, name)
            tensor = read_tensor(self.checkpoint, self.names.renamed[key])
            tensor = tensor.to(self.device, self._dtype(key, before))
            if tensor.shape != before.shape:
                raise InvalidInputError.one(
                    self.names.renamed[key],
                    f"has shape {list(tensor.shape)}; the config says {list(before.shape)}",
                )
            _place(module, name, tensor)
        if converted:
            self._convert(converted)

    def _convert(self, tensors: dict[str, Any]) -> None:
        model = self.skeleton.model
        found, _ = convert_and_load_state_dict_in_model(
            model,
            tensors,
            LoadStateDictConfig(
                weight_mapping=deepcopy(get_model_conversion_mapping(model)),
                dtype=self.dtype,
                device_map={"": self.device},
                dtype_plan=model._get_dtype_plan(self.dtype),
            ),
        )
        if found.conversion_errors or found.mismatched_keys:
            what = found.conversion_errors or found.mismatched_keys
            raise InvalidInputError.one(next(iter(tensors)), f"cannot be converted: {what}")

    def _dtype(self, key: str, parameter: Tensor) -> torch.dtype:
        planned = self._plan(key)
        return parameter.dtype if planned is None else planned


def _place(module: nn.Module, name: str, tensor: Tensor) -> None:
    if name in module._buffers:
        module._buffers[name] = tensor
    else:
        parameter = nn.Parameter(tensor, requires_grad=False)
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        module._parameters[name] = parameter


def _dtype_plan(model: Any, dtype: torch.dtype) -> Callable[[str], torch.dtype | None]:
    """Which parameters a family keeps in another dtype than the rest."""
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    if not plan:
        return lambda key: None
    pattern, groups, _ = build_glob_alternation(list(plan))

    def planned(key: str) -> torch.dtype | None:
        found = pattern.search(key)
        return None if found is None else plan[groups[found.lastgroup]]

    return planned
