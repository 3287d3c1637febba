"""Models of transformers, in the layout that the hub has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from quantlib.checkpoint.checkpoint import CONFIG_NAME, INDEX_NAME, Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.remote_code import without_code
from quantlib.models.adapter import BaseModelAdapter
from quantlib.models.fusion import VllmNames, vllm_names
from quantlib.models.layout import ANY_EXPERT, of_expert, without_expert
from quantlib.models.naming import OUTSIDE, VISION
from quantlib.models.registry import model_registry
from quantlib.models.servable import untied, with_causal_architecture
from quantlib.scheme_rules import OuterKind

if TYPE_CHECKING:
    import torch

    from quantlib.models.skeleton import Skeleton
    from quantlib.models.streamed import StreamedModel

_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""What vLLM fuses in every family that it does not say otherwise of."""

_NUMBERED = re.compile(r"(?:.*\.)?(\w+)\.\d+\.(.+)")

_AUDIO = frozenset({"embed_audio", "audio_tower"})
"""Modules that neither text nor images go through."""


@model_registry.register_default
class BaseHuggingFaceAdapter(BaseModelAdapter):
    """A model that transformers has: its own modules are walked, whatever they compute.

    A family that needs more than its layout says overrides a few lines.
    """

    exact: ClassVar[Mapping[str, str]] = {
        "*.kv_b_proj": "vLLM multiplies it into the attention of MLA itself",
        "*.indexer.*": "chooses tokens of sparse attention",
        "*router*": "chooses experts",
        "*.gate.wg": "chooses experts",
        "*.in_proj_[ab]": "gives gates and decays, one number a head",
        "*.in_proj_ba": "gives gates and decays, one number a head",
        "self_attn.b_proj": "gives gates, one number a head",
    }

    def fused(self, block: int) -> Mapping[str, tuple[str, ...]]:
        """The linears that vLLM fuses, by the name that it gives the fused one or all of them.

        What the pinned vLLM was not asked about is taken to be fused as in most families.
        """
        linears = self.linears(block)
        prefix = self.block_prefix(block)
        if self._vllm is None:
            return {prefix + name: parts for name, parts in _usually_fused(linears).items()}
        fused = self._vllm.fused([prefix + linear for linear in linears])
        return {
            name: tuple(part.removeprefix(prefix) for part in parts)
            for name, parts in fused.items()
        }

    def kept_exact(self, block: int) -> Mapping[str, str]:
        """Linears of a block that are never quantized, and why."""
        kept = super().kept_exact(block)
        if self._vllm is None:
            return kept
        never = {
            linear: "vLLM takes no codes for it"
            for linear in self.layout.kind(block).shapes
            if self._vllm.never(self.linear_name(block, of_expert(linear, 0)))
        }
        return {**kept, **never, **self._unread_experts(block, self._vllm)}

    def _unread_experts(self, block: int, vllm: VllmNames) -> dict[str, str]:
        """Linears of mixtures whose matrices vLLM reads in other pieces than they are written in.

        It would leave out what it does not know by name, without an error.
        """
        unread: dict[str, str] = {}
        linears = [linear for linear in self.layout.kind(block).shapes if ANY_EXPERT in linear]
        for linear in linears:
            known = vllm.experts(self.linear_name(block, of_expert(linear, 0)))
            if known is None or linear.rpartition(".")[2] in known.names:
                continue
            mixture = linear.partition(ANY_EXPERT)[0]
            why = f"vLLM reads {' and '.join(known.names)} of an expert"
            unread |= {name: why for name in linears if name.startswith(mixture)}
        return unread

    def spelled(self, block: int, linear: str) -> tuple[str, ...]:
        """The names by which vLLM may ask for a linear that stays exact; its own among them."""
        name = self.linear_name(block, linear)
        return (name,) if self._vllm is None else self._vllm.spelled(name)

    def outer_names(self, kind: OuterKind) -> tuple[str, ...]:
        """What a config names it by, for vLLM to read codes; empty where it reads none."""
        if self._vllm is None:
            return super().outer_names(kind)
        names = self._vllm.outer(kind)
        return tuple(dict.fromkeys((self.outer_module(kind), *names))) if names else ()

    def outside(self, rounded: Collection[str] = ()) -> tuple[str, ...]:
        """Linears outside of the blocks, and with a dot at the end modules, as vLLM names them too.

        They stay exact.

        Args:
            rounded: Linears of draft layers that do not.
        """
        drafting = self.exact_drafting(rounded) if rounded else ()
        names = tuple(name for name in super().outside(rounded) if name not in drafting)
        # vLLM has what stands beside the language model under no model., and maps no patterns.
        beside = [name for name, why in self.layout.outside.items() if why == OUTSIDE]
        names = (*names, *(name.removeprefix("model.") for name in beside))
        if self.drafts and not rounded:
            names = (*names, *self._following())
        vllm = self._vllm
        others = [] if vllm is None else [other for name in names for other in vllm.within(name)]
        return tuple(dict.fromkeys((*names, *others, *drafting)))

    def exact_drafting(self, rounded: Collection[str]) -> tuple[str, ...]:
        """What of the draft layers stays exact where some of their linears do not.

        Args:
            rounded: Those linears.

        Returns:
            Linears, and with a dot at the end the modules that experts lie in, as vLLM may name
            them too.
        """
        stored = super().exact_drafting(rounded)
        endings = dict.fromkeys(ending for name in stored for ending in _endings(name))
        names = (*stored, *(prefix + ending for prefix in self._following() for ending in endings))
        if self._vllm is None:
            return names
        others = [
            other
            for name in names
            for other in self._vllm.spelled(name.removesuffix("."))
            if f"{other}." != name
        ]
        return tuple(dict.fromkeys((*names, *others)))

    def _following(self) -> list[str]:
        """What names within the next blocks start with.

        However they are stored, most families' draft layers are those to vLLM.
        """
        count = int(self.text_config.get("num_nextn_predict_layers") or 1)
        return [self.block_prefix(self.blocks + number) for number in range(count)]

    @cached_property
    def _vllm(self) -> VllmNames | None:
        return vllm_names(self.layout.architecture, self.blocks)

    def load_model(self, checkpoint: Checkpoint, device: torch.device) -> StreamedModel:
        """Opens a model whose weights are read block by block.

        Args:
            checkpoint: The unquantized checkpoint.
            device: Where blocks are computed.
        """
        from quantlib.models.streamed import StreamedModel

        return StreamedModel(self, checkpoint, device)

    def needed_outside(self, skeleton: Skeleton, *, images: bool = False) -> Callable[[str], bool]:
        """Says of a parameter outside of the blocks whether text goes through it.

        Args:
            skeleton: The modules.
            images: Whether images go through it, too.
        """
        unread = _AUDIO if images else _AUDIO | VISION
        return lambda key: unread.isdisjoint(key.split("."))

    def save_model(
        self,
        checkpoint: Checkpoint,
        output: Path,
        parts: Mapping[str, Mapping[str, TensorInfo]],
        quantization_config: Mapping[str, Any],
        *,
        unties: bool = False,
    ) -> None:
        """Writes what makes files of tensors a checkpoint: the index and the config.

        What names code on a hub is left out of the config.

        Args:
            checkpoint: The original.
            output: The folder to write to.
            parts: The headers of the checkpoint's safetensors files, by file name. The files are
                not touched.
            quantization_config: What vLLM and transformers read to load the parts.
            unties: Whether the head, which was the embedding, is now a tensor of its own.
        """
        placed = {tensor: part for part, tensors in parts.items() for tensor in tensors}
        total = sum(info.bytes for tensors in parts.values() for info in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        _write_json(output / INDEX_NAME, index)
        config, _ = without_code(CONFIG_NAME, with_causal_architecture(self.config))
        if unties:
            config = untied(config)
        config["quantization_config"] = dict(quantization_config)
        _write_json(output / CONFIG_NAME, config)

    def format_problem(self, format_name: str, exact: Sequence[Collection[str]]) -> str | None:
        """Why vLLM cannot read the family in a format that it reads otherwise; None where it can.

        Where its first choice of kernels does not take the hidden size, vLLM (moe_wna16.py) forgets
        what the gptq format says of experts that stay exact.
        """
        hidden = self.text_config.get("hidden_size", 0)
        if format_name != "gptq" or hidden % 128 == 0:
            return None
        for block, linears in enumerate(exact):
            for shared in self.inputs(block):
                if shared.expert is not None and set(shared.linears) <= set(linears):
                    return (
                        f"vLLM takes exact experts (block {block}) for quantized ones where the "
                        f"hidden size, {hidden}, is no multiple of 128"
                    )
        return None


def _endings(name: str) -> list[str]:
    """What vLLM may call a module of a draft layer within the block that it makes of the layer."""
    match = _NUMBERED.fullmatch(name)
    module, within = (match[1], match[2]) if match else ("", name)
    endings = [within, f"{module}.{within}"] if module else []
    if not name.endswith("."):
        endings.append(within.removesuffix(".0").rpartition(".")[2])
    return endings


def _usually_fused(linears: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    experts: dict[str, list[str]] = {}
    for linear in linears:
        if ANY_EXPERT in (template := without_expert(linear)):
            experts.setdefault(template.partition(f".{ANY_EXPERT}.")[0], []).append(linear)
            continue
        path, _, last = linear.rpartition(".")
        for fused, parts in _FUSED.items():
            if last == parts[0]:
                named = tuple(f"{path}.{part}" for part in parts)
                if whole := tuple(name for name in named if name in linears):
                    found[f"{path}.{fused}"] = whole
    return found | {name: tuple(of) for name, of in experts.items()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
