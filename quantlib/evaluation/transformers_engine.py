"""transformers, with quantized checkpoints through quantlib's own dequantization."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from quantlib.errors import QuantlibError
from quantlib.evaluation.engine import Scored
from quantlib.evaluation.given_states import language_parts, logits_of
from quantlib.evaluation.metrics import (
    Comparison,
    Leads,
    compare_halves,
    leads,
    next_token_logprobs,
)

if TYPE_CHECKING:
    from quantlib.checkpoint.checkpoint import Checkpoint
    from quantlib.evaluation.job import Job
    from quantlib.models.names import Names
    from quantlib.models.skeleton import Skeleton
    from quantlib.schemes import LinearScheme


_OF_EXPERT = re.compile(r"experts\.(\d+)\.")


def preload() -> None:
    """Imports what loading any model imports, before processes are forked that load one each."""
    import transformers.modeling_layers  # noqa: F401 for later, as the next

    import quantlib.models.names  # noqa: F401


class TransformersEngine:
    """A model that transformers has loaded."""

    throughput_method = "greedy decoding, one prompt after the other"
    tolerance = 1e-2

    def __init__(self, job: Job) -> None:
        if job.device == "cuda" and not torch.cuda.is_available():
            raise QuantlibError("there is no CUDA device; set the device to auto or cpu")
        on_gpu = job.device != "cpu" and torch.cuda.is_available()
        self.device = "cuda" if on_gpu else "cpu"
        dtype = job.dtype if on_gpu else "float32"
        self.numerics = f"everything in {dtype}"
        self._model = load_model(Path(job.model), getattr(torch, dtype)).to(self.device).eval()
        self._original_head: nn.Linear | None = None
        if job.original_head is not None:
            parts = load_file(job.original_head)
            rows, columns = parts["weight"].shape
            self._original_head = nn.Linear(columns, rows, bias="bias" in parts)
            self._original_head.load_state_dict(parts)
            self._original_head.to(self.device, getattr(torch, dtype))

    def score(self, window: Tensor, own_logprobs: bool) -> Scored:
        """Reads a window, int64 ``[sequence]``."""
        tokens = window.to(self.device)[None]
        _, decoder = language_parts(self._model)
        hidden = decoder(tokens, use_cache=False).last_hidden_state[0]
        if not own_logprobs:
            return Scored(hidden, None)
        logits = self._model(tokens, use_cache=False).logits[0, :-1]
        return Scored(hidden, next_token_logprobs(logits, tokens[0, 1:]))

    def count_logits(self, hidden: Tensor) -> int:
        """How many logits the head gives for each of the hidden states ``[rows, hidden_size]``."""
        return self._logits(hidden).shape[1]

    def compare(self, reference: Tensor, candidate: Tensor, targets: Tensor) -> Comparison:
        """Compares what the head makes of two models' hidden states."""
        if self._original_head is None:
            dtype = self._model.dtype
            states = torch.cat([each.to(self.device, dtype) for each in (reference, candidate)])
            return compare_halves(self._logits(states), targets)
        logits = [self._logits(reference, original=True), self._logits(candidate)]
        return compare_halves(torch.cat(logits), targets)

    def leads(self, hidden: Tensor) -> Leads:
        """What the head finds most likely after hidden states ``[rows, hidden_size]``."""
        return leads(self._logits(hidden))

    def next_token_logprobs(
        self, hidden: Tensor, targets: Tensor, *, original: bool = False
    ) -> Tensor:
        """Log likelihood of each target by the head, float32 ``[positions]`` on the CPU."""
        logits = self._logits(hidden, original=original)
        return next_token_logprobs(logits, targets.to(self.device)).cpu()

    def _logits(self, hidden: Tensor, *, original: bool = False) -> Tensor:
        """Logits ``[rows, vocabulary]`` of hidden states ``[rows, hidden_size]``."""
        own = self._model.get_output_embeddings()
        if original and self._original_head is not None:
            self._model.set_output_embeddings(self._original_head)
        try:
            return logits_of(self._model, hidden.to(self.device, self._model.dtype))
        finally:
            self._model.set_output_embeddings(own)

    def complete(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Continues token sequences greedily; gives the new tokens of each."""
        from transformers import GenerationConfig

        end = self._model.generation_config.eos_token_id
        first_end = end[0] if isinstance(end, list) else end
        # The model's own settings may ask for sampling or penalties.
        self._model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=first_end
        )
        found = []
        for prompt in prompts:
            tokens = torch.tensor([prompt], device=self.device)
            output = self._model.generate(tokens, attention_mask=torch.ones_like(tokens))
            found.append(output[0, len(prompt) :].tolist())
        return found

    def close(self) -> None:
        """Does nothing: no process was started."""


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """The causal language model of a folder.

    A quantized checkpoint's linears get the weights that their codes stand for, and where it
    quantizes activations, their inputs are rounded as vLLM rounds them.

    Raises:
        QuantlibError: Inputs of experts would have to be rounded, and transformers lets no function
            but its own compute those of the family.
    """
    from transformers import AutoConfig

    from quantlib.checkpoint.checkpoint import Checkpoint
    from quantlib.checkpoint.quantized import quantized_modules
    from quantlib.checkpoint.source import FolderSource
    from quantlib.evaluation.rounded_experts import ROUNDED_EXPERTS
    from quantlib.formats import format_registry
    from quantlib.formats.dequantize import dequantized_state
    from quantlib.models.names import Names
    from quantlib.models.skeleton import Skeleton

    checkpoint = Checkpoint.open(FolderSource(folder))
    skeleton = Skeleton(checkpoint.config)
    model_class = type(skeleton.model)
    config = AutoConfig.from_pretrained(folder)
    settings: dict[str, Any] = {"config": config, "dtype": dtype}
    if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None):
        settings["attn_implementation"] = "eager"  # torch's fused attention caps no scores
    if getattr(config, "quantization_config", None) is None:
        return model_class.from_pretrained(folder, **settings)
    quantization = checkpoint.config["quantization_config"]
    del config.quantization_config
    state = dict(dequantized_state(checkpoint))
    names = Names.of(skeleton, state)
    _stack_experts(skeleton, names, state)
    made_by = format_registry.get_format(quantization["quant_method"])
    scheme_of = made_by.read_schemes(quantization)
    schemes = {name: scheme_of(name) for name in quantized_modules(checkpoint.tensors)}
    rounded = {
        name: scheme for name, scheme in schemes.items() if scheme and scheme.activations != "none"
    }
    if any(map(_OF_EXPERT.search, rounded)):
        settings["experts_implementation"] = ROUNDED_EXPERTS
    model = model_class.from_pretrained(None, state_dict=state, **settings)
    _round_linears(model, checkpoint, names, rounded)
    if made_by.read_cache(quantization) is not None:
        _round_cached(model, checkpoint)
    return model


def _round_linears(
    model: Any, checkpoint: Checkpoint, names: Names, rounded: Mapping[str, LinearScheme]
) -> None:
    """Lets linears round their inputs as they are served.

    Args:
        model: Of transformers.
        checkpoint: The quantized one.
        names: What transformers calls its tensors.
        rounded: The schemes of such linears, by full name.

    Raises:
        QuantlibError: Inputs of experts that transformers computes in its own way alone.
    """
    from quantlib.checkpoint.tensors import read_tensor
    from quantlib.evaluation.rounded_experts import round_inputs
    from quantlib.formats.compressed_tensors import input_scale_name
    from quantlib.numbers.inputs import round_input

    for name, scheme in rounded.items():
        scale = None
        if scheme.is_static:
            scale = read_tensor(checkpoint, f"{name}.{input_scale_name(scheme.activations)}")
        rounding = partial(round_input, activations=scheme.activations, step=scale)
        target = names.target[f"{name}.weight"]
        if expert := _OF_EXPERT.search(name):
            path, _, parameter = target.rpartition(".")
            module = model.get_submodule(path)
            if not hasattr(module, "is_transposed"):
                what = f"transformers cannot round the inputs of {type(module).__name__}"
                raise QuantlibError(f"{what}: judge with vLLM")
            round_inputs(module)[int(expert[1]), parameter == "down_proj"] = rounding
            continue
        module = model.get_submodule(target.removesuffix(".weight"))
        module.register_forward_pre_hook(lambda _, inputs, rounding=rounding: (rounding(*inputs),))


def _round_cached(model: Any, checkpoint: Checkpoint) -> None:
    """Lets modules of attention take keys, values and queries as they are served, in FP8."""
    from quantlib.checkpoint.tensors import read_tensor
    from quantlib.models.attention import at_attention
    from quantlib.models.opening import open_checkpoint
    from quantlib.numbers.cached import CacheScales

    _, adapter = open_checkpoint(checkpoint, folds=False)
    for block in range(adapter.blocks):
        for each in adapter.layout.attention(block):
            stored = f"{adapter.block_prefix(block)}{each.name}"
            queries = f"{stored}.q_scale"
            scales = CacheScales(
                read_tensor(checkpoint, f"{stored}.k_scale"),
                read_tensor(checkpoint, f"{stored}.v_scale"),
                read_tensor(checkpoint, queries) if queries in checkpoint.tensors else None,
            )
            name = f"{adapter.layout.module_prefix.format(block)}{each.module}"
            at_attention(model.get_submodule(name), scales.round)


def _stack_experts(skeleton: Skeleton, names: Names, state: dict[str, Tensor]) -> None:
    """Puts the experts of families that have all in one tensor into one; they come one by one."""
    from quantlib.models.experts import linear_views
    from quantlib.models.layout import EXPERT_PARTS

    for index, modules in skeleton.experts.items():
        for path, module in modules.items():
            whole = dict(module.named_parameters())
            for parameter, linears in EXPERT_PARTS.items():
                key = f"{skeleton.prefix}{index}.{path}.{parameter}"
                parts = names.converted.get(key, ())
                if not parts or {names.pattern[part] for part in parts} != set(linears):
                    continue  # transformers joins them itself
                stack = torch.empty(whole[parameter].shape, dtype=state[parts[0]].dtype)
                for part in parts:
                    found = _OF_EXPERT.search(part)
                    assert found is not None
                    weights = {name: each[0] for name, each in whole.items()}
                    weights[parameter] = stack[int(found[1])]
                    views = linear_views(module, weights)
                    views[names.pattern[part]].copy_(state.pop(part))
                state[key] = stack
