"""Whole models of transformers, to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from quantlib.models.boundary import HIDDEN
from quantlib.models.streamed import StreamedModel

_TRANSPOSED = {"GptOssExperts", "Llama4TextExperts"}


def read_whole(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model as transformers reads it."""
    config = transformers.AutoConfig.from_pretrained(folder)
    settings = {"dtype": dtype, "experts_implementation": "eager"}
    if getattr(config, "attn_logit_softcapping", None):
        settings["attn_implementation"] = "eager"  # the default one caps no scores
    (name,) = config.architectures
    return getattr(transformers, name).from_pretrained(folder, **settings).eval()


def blocks_of(whole: Any, model: StreamedModel) -> nn.ModuleList:
    prefix = model.adapter.layout.module_prefix.removesuffix(".{}.")
    found = whole.get_submodule(prefix)
    assert isinstance(found, nn.ModuleList)
    return found


def states_of(whole: Any, model: StreamedModel, tokens: Tensor) -> list[Tensor]:
    """What transformers gives after every block for tokens ``[samples, sequence]``."""
    found: list[list[Tensor]] = []

    def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
        found[-1].append((output[0] if isinstance(output, tuple) else output).clone())

    for block in blocks_of(whole, model):
        block.register_forward_hook(keep)
    for sample in tokens.split(1):
        found.append([])
        whole.base_model(input_ids=sample, use_cache=False)
    axis = model.adapter.layout.axes.get(HIDDEN, 0)
    return [torch.cat(samples, axis) for samples in zip(*found, strict=True)]


def expert_weights(module: Any, linear: str) -> Iterator[Tensor]:
    """The same matrix of every expert, ``[out_features, in_features]``."""
    kind = type(module).__name__
    gate_up = getattr(module, "gate_up_proj", None)
    fused = gate_up is not None and linear != "down_proj"
    for weight in gate_up if fused else getattr(module, linear):
        rows = weight.t() if kind in _TRANSPOSED else weight
        if fused and kind == "GptOssExperts":
            rows = rows[linear == "up_proj" :: 2]
        elif fused:
            rows = rows.chunk(2)[linear == "up_proj"]
        yield rows
