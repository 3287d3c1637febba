"""vLLM, in this process, on whatever device it was built for.

The final hidden states are taken from a forward hook on the model, one window at a time, and logits
are computed by the model's own ``compute_logits``: what is compared is what vLLM serves.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from quantlib.compute import cpu_multiplies
from quantlib.errors import QuantlibError
from quantlib.evaluation.engine import Scored

if TYPE_CHECKING:
    from quantlib.evaluation.job import Job

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model stays within reach of this process
    "VLLM_CPU_INT4_W4A8": "0",  # or CPUs with AMX also quantize the activations of W4A16
    # Reading a window asks for one token more, and a window may be as long as the model's limit.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1",  # the sampler compiles kernels that cost more than they save
}
_KV_BLOCK = 128
"""Tokens of the largest KV cache block that vLLM uses unasked."""


def preload() -> None:
    """Imports vLLM; no accelerator is touched, so that processes may be forked afterwards."""
    os.environ.update(_ENVIRONMENT)
    from vllm import LLM  # noqa: F401 imported for later

    # A process has to ask Linux for the tile registers. vLLM's kernel for 4-bit weights uses them
    # unasked, and dies of it (SIGILL) where no product of unquantized weights came before.
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


class VllmEngine:
    """A model that vLLM has loaded."""

    throughput_method = "greedy decoding of all prompts in one batch"

    def __init__(self, job: Job) -> None:
        preload()
        from vllm import LLM
        from vllm.platforms import current_platform

        self.device: str = current_platform.device_type
        if job.device not in ("auto", self.device):
            raise QuantlibError(
                f"the installed vLLM runs on {self.device}, not on {job.device}; install the one "
                f"for {job.device}, or set the device to auto"
            )
        config = json.loads((Path(job.model) / "config.json").read_text(encoding="utf-8"))
        self.numerics = f"blocks in {job.dtype}, logits in float32"
        if self.device == "cpu" and _multiply_in_float32(job.dtype):
            self.numerics += (
                f"; products of unquantized weights in float32, rounded to {job.dtype}, since "
                "this processor has no instruction for them"
            )
        register_without_subprocess(config)
        sequence = _sequence_length(job)
        sequences = max(1, len(job.prompts))
        self._llm = LLM(
            model=job.model,
            dtype=job.dtype,
            skip_tokenizer_init=True,
            enforce_eager=True,
            enable_prefix_caching=False,
            distributed_executor_backend="uni",
            async_scheduling=False,
            max_model_len=sequence,
            max_num_seqs=sequences,
            max_num_batched_tokens=max(sequence, sequences),
            kv_cache_memory_bytes=_kv_cache_bytes(config, sequence, sequences),
        )
        self._captured: list[Tensor] | None = None
        self._llm.apply_model(self._attach)

    def score(self, window: Tensor, own_logprobs: bool) -> Scored:
        """Reads a window, int64 ``[sequence]``."""
        from vllm import SamplingParams

        self._captured = []
        parameters = SamplingParams(
            temperature=0,
            max_tokens=1,
            detokenize=False,
            prompt_logprobs=0 if own_logprobs else None,
        )
        tokens = window.tolist()
        with self._float32_head(own_logprobs):
            (output,) = self._llm.generate({"prompt_token_ids": tokens}, parameters, use_tqdm=False)
        hidden = torch.cat(self._captured)
        self._captured = None
        if len(hidden) != len(tokens):
            raise QuantlibError(
                f"vLLM computed {len(hidden)} hidden states for a window of {len(tokens)} tokens; "
                "this version of vLLM cannot be used"
            )
        if not own_logprobs:
            return Scored(hidden, None)
        chosen = zip(output.prompt_logprobs[1:], tokens[1:], strict=True)
        return Scored(hidden, torch.tensor([given[token].logprob for given, token in chosen]))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[rows, vocabulary]`` of hidden states ``[rows, hidden_size]``."""
        with self._float32_head(), torch.inference_mode():
            return self._model.compute_logits(hidden.to(self._hidden_device))

    def complete(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Continues token sequences greedily; gives the new tokens of each."""
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0, max_tokens=max_new_tokens, detokenize=False)
        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], parameters, use_tqdm=False
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _attach(self, model: nn.Module) -> None:
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        def capture(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if self._captured is not None:
                self._captured.append(output.clone())

        model.register_forward_hook(capture)
        self._model: Any = model
        self._hidden_device = next(model.parameters()).device
        self._heads = [part for part in model.modules() if isinstance(part, LogitsProcessor)]

    @contextmanager
    def _float32_head(self, wanted: bool = True) -> Iterator[None]:
        """Computes logits in float32: in 16 bits their rounding alone is some KL divergence."""
        before = [head.head_dtype for head in self._heads]
        try:
            for head in self._heads if wanted else ():
                head.head_dtype = torch.float32
            yield
        finally:
            for head, dtype in zip(self._heads, before, strict=True):
                head.head_dtype = dtype


def _sequence_length(job: Job) -> int:
    window = np.load(job.tokens, mmap_mode="r").shape[1]
    longest_prompt = max(map(len, job.prompts), default=0)
    return max(window + 1, longest_prompt + job.max_new_tokens)


def _kv_cache_bytes(config: dict[str, Any], sequence: int, sequences: int) -> int:
    """A KV cache for ``sequences`` sequences at once, in 16 bits."""
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    per_layer = 2 * (config.get("num_key_value_heads") or heads) * head_size * 2
    blocks = sequences * math.ceil(sequence / _KV_BLOCK) + 2
    layers = config["num_hidden_layers"]
    if config.get("sliding_window"):
        layers *= 2  # vLLM pads groups of layers with and without a window to the same size
    return layers * per_layer * blocks * _KV_BLOCK


def register_without_subprocess(config: dict[str, Any]) -> None:
    """Imports the model class here, where vLLM would start a process to look at it first."""
    from vllm import ModelRegistry

    for architecture in config.get("architectures") or ():
        if architecture in ModelRegistry.models:
            model_class = ModelRegistry.models[architecture].load_model_cls()
            ModelRegistry.register_model(architecture, model_class)


def _multiply_in_float32(dtype: str) -> bool:
    """Makes vLLM's oneDNN products run in float32 where 16 bits are emulated, 3 to 10 times slower.

    oneDNN sums 16-bit products in float32 and rounds the sum, and so does this. Kernels of
    quantized linears are left alone.

    Returns:
        Whether it was needed and done.
    """
    from vllm import _custom_ops as ops

    if platform.machine() != "x86_64" or cpu_multiplies(getattr(torch, dtype)):
        return False
    if not hasattr(ops, "create_onednn_mm") or not hasattr(ops, "onednn_mm"):
        return False
    create, multiply = ops.create_onednn_mm, ops.onednn_mm

    def create_float32(weight: Tensor, *arguments: Any) -> Any:
        return create(weight.float(), *arguments)

    def multiply_float32(handler: Any, inputs: Tensor, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else bias.float()
        return multiply(handler, inputs.float(), bias).to(inputs.dtype)

    ops.create_onednn_mm, ops.onednn_mm = create_float32, multiply_float32
    return True
