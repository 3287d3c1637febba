"""vLLM, on whatever device it was built for.

The final hidden states are taken from a forward hook on the model, one window at a time, and logits
are computed by the model's own ``compute_logits``: what is compared is what vLLM serves. A model on
one device is in this process; one over several is in a worker process for each, and what looks at
it is sent there (:mod:`quantlib.evaluation.vllm_model`).
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from quantlib.errors import QuantlibError
from quantlib.evaluation import vllm_model
from quantlib.evaluation.engine import Scored
from quantlib.evaluation.job import Drafted
from quantlib.runtime.cpus import available_cpus
from quantlib.runtime.devices import cpu_multiplies

if TYPE_CHECKING:
    from quantlib.evaluation.job import Job
    from quantlib.evaluation.metrics import Comparison, Leads

_ENVIRONMENT = {
    # Scheduling is in this process, and so is a model on one device.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_INT4_W4A8": "0",  # or CPUs with AMX also quantize the activations of W4A16
    # Reading a window asks for one token more, and a window may be as long as the model's limit.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1",  # the sampler compiles kernels that cost more than they save
}
_CPU_WORKERS = "quantlib.evaluation.vllm_cpu_worker"
_KV_BLOCK = 128
"""Tokens of the largest KV cache block that vLLM uses unasked."""
_LEAST_KV_CACHE = 1 << 28
"""Bytes in which the states of convolutions and linear attention have their place too."""


def preload() -> None:
    """Imports vLLM; no accelerator is touched, so that processes may be forked afterwards."""
    os.environ.update(_ENVIRONMENT)
    from vllm import LLM  # noqa: F401 imported for later

    # A process has to ask Linux for the tile registers. vLLM's kernel for 4-bit weights uses them
    # unasked, and dies of it (SIGILL) where no product of unquantized weights came before.
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


class VllmEngine:
    """A model that vLLM has loaded, in this process or in a worker for each device."""

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
        self._devices = devices = job.tensor_parallel_size
        self.numerics = f"blocks in {job.dtype}, logits in float32"
        options: dict[str, Any] = {}
        if self.device == "cpu":
            options["worker_cls"] = f"{_CPU_WORKERS}.CorrectedCpuWorker"
            self.numerics += (
                "; vLLM's rotary embedding, RMS norm and choice of experts for CPUs corrected"
            )
            if _emulates_products(job.dtype):
                options["worker_cls"] = f"{_CPU_WORKERS}.Float32CpuWorker"
                self.numerics += (
                    f"; products of unquantized weights in float32, rounded to {job.dtype}, since "
                    "this processor has no instruction for them"
                )
        if (config.get("quantization_config") or {}).get("kv_cache_scheme"):
            self.numerics += "; keys and values kept in FP8"
            if self.device == "cpu":
                self.numerics += ", to the nearest and with scales per head as on GPUs"
        if devices > 1:
            self.numerics += f"; tensor parallel over {devices} devices"
            if self.device == "cpu":
                _share_processors(devices)
        register_without_subprocess(config)
        if job.drafts:
            register_without_subprocess({"architectures": _drafting_classes(job.model)})
            options["speculative_config"] = {"method": "mtp", "num_speculative_tokens": 1}
            options["disable_log_stats"] = False  # who asks for metrics has to have them counted
        # With room for a last draft, without which vLLM's linear attention for CPUs fails.
        sequence = _sequence_length(job) + job.drafts
        sequences = max(1, len(job.prompts), len(job.questions))
        self._llm = LLM(
            model=job.model,
            dtype=job.dtype,
            skip_tokenizer_init=True,
            language_model_only=True,
            enforce_eager=True,
            enable_prefix_caching=False,
            tensor_parallel_size=devices,
            distributed_executor_backend="uni" if devices == 1 else "mp",
            async_scheduling=False,
            max_model_len=sequence,
            max_num_seqs=sequences,
            max_num_batched_tokens=max(sequence, sequences * (1 + job.drafts)),
            kv_cache_memory_bytes=_kv_cache_bytes(config, sequence, sequences, job),
            **options,
        )
        rounded = self._on_model(vllm_model.attach, original_head=job.original_head)
        self.tolerance = 0.3 if rounded else 1e-2
        if rounded:
            self.numerics += f"; those of the quantized head in {job.dtype}, as it gives them"

    def score(self, window: Tensor, own_logprobs: bool) -> Scored:
        """Reads a window, int64 ``[sequence]``."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            temperature=0,
            max_tokens=1,
            detokenize=False,
            prompt_logprobs=0 if own_logprobs else None,
        )
        tokens = window.tolist()
        self._on_model(vllm_model.start_capture, float32_head=own_logprobs)
        (output,) = self._llm.generate({"prompt_token_ids": tokens}, parameters, use_tqdm=False)
        hidden: Tensor = self._on_model(vllm_model.take_captured)
        if len(hidden) != len(tokens):
            raise QuantlibError(
                f"vLLM computed {len(hidden)} hidden states for a window of {len(tokens)} tokens; "
                "this version of vLLM cannot be used"
            )
        if not own_logprobs:
            return Scored(hidden, None)
        chosen = zip(output.prompt_logprobs[1:], tokens[1:], strict=True)
        return Scored(hidden, torch.tensor([given[token].logprob for given, token in chosen]))

    def count_logits(self, hidden: Tensor) -> int:
        """How many logits the head gives for each of the hidden states ``[rows, hidden_size]``."""
        count: int = self._on_model(vllm_model.count_logits, hidden=hidden)
        return count

    def compare(self, reference: Tensor, candidate: Tensor, targets: Tensor) -> Comparison:
        """Compares what the head makes of two models' hidden states."""
        found: Comparison = self._on_model(
            vllm_model.compare, reference=reference, candidate=candidate, targets=targets
        )
        return found

    def leads(self, hidden: Tensor) -> Leads:
        """What the head finds most likely after hidden states ``[rows, hidden_size]``."""
        found: Leads = self._on_model(vllm_model.leads, hidden=hidden)
        return found

    def next_token_logprobs(
        self, hidden: Tensor, targets: Tensor, *, original: bool = False
    ) -> Tensor:
        """Log likelihood of each target by the head, float32 ``[positions]`` on the CPU."""
        found: Tensor = self._on_model(
            vllm_model.next_token_logprobs, hidden=hidden, targets=targets, original=original
        )
        return found

    def complete(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Continues token sequences greedily; gives the new tokens of each."""
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0, max_tokens=max_new_tokens, detokenize=False)
        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], parameters, use_tqdm=False
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    def drafted(self) -> Drafted:
        """What became of all drafts so far."""
        counted = {
            metric.name: metric.value
            for metric in self._llm.get_metrics()
            if isinstance(getattr(metric, "value", None), int)
        }
        return Drafted(
            counted.get("vllm:spec_decode_num_drafts", 0),
            counted.get("vllm:spec_decode_num_accepted_tokens", 0),
        )

    def close(self) -> None:
        """Ends the processes that it has started."""
        if self._devices > 1:
            self._llm.llm_engine.engine_core.shutdown()

    def _on_model(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """What a function of :mod:`quantlib.evaluation.vllm_model` gives on the first rank."""
        return self._llm.apply_model(partial(function, **arguments))[0]


def _share_processors(workers: int) -> None:
    """Lets workers on a CPU share its cores, where vLLM asks for a NUMA node for each."""
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // workers)))


def _sequence_length(job: Job) -> int:
    window = np.load(job.tokens, mmap_mode="r").shape[1]
    longest_prompt = max(map(len, job.prompts), default=0)
    longest_question = max(map(len, job.questions), default=0)
    return max(
        window + 1, longest_prompt + job.max_new_tokens, longest_question + job.answer_tokens
    )


def _kv_cache_bytes(config: dict[str, Any], sequence: int, sequences: int, job: Job) -> int:
    """A device's part of a KV cache for ``sequences`` sequences at once, in 16 bits."""
    config = config.get("text_config", config)
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    # Fewer heads than devices are repeated.
    heads_here = max(1, (config.get("num_key_value_heads") or heads) // job.tensor_parallel_size)
    per_layer = 2 * heads_here * head_size * 2
    if rank := config.get("kv_lora_rank"):  # latent attention, whole on every device
        per_layer = max(per_layer, (rank + config["qk_rope_head_dim"]) * 2)
    blocks = sequences * math.ceil(sequence / _KV_BLOCK) + 2
    layers = config["num_hidden_layers"] + job.drafts
    if config.get("sliding_window"):
        layers *= 2  # vLLM pads groups of layers with and without a window to the same size
    return max(layers * per_layer * blocks * _KV_BLOCK, _LEAST_KV_CACHE)


def register_without_subprocess(config: dict[str, Any]) -> None:
    """Imports the model class here, where vLLM would start a process to look at it first."""
    from vllm import ModelRegistry

    for architecture in config.get("architectures") or ():
        if architecture in ModelRegistry.models:
            model_class = ModelRegistry.models[architecture].load_model_cls()
            ModelRegistry.register_model(architecture, model_class)


def _drafting_classes(model: str) -> list[str]:
    """What vLLM computes a model's own draft layers by, named as it names it."""
    from vllm.config.speculative import SpeculativeConfig
    from vllm.transformers_utils.config import get_config

    config = get_config(model, trust_remote_code=False)
    return list(SpeculativeConfig.hf_config_override(config).architectures)


def _emulates_products(dtype: str) -> bool:
    """Whether vLLM's oneDNN products in a dtype are emulated here, and can be replaced."""
    from vllm import _custom_ops as ops

    if platform.machine() != "x86_64" or cpu_multiplies(getattr(torch, dtype)):
        return False
    return hasattr(ops, "create_onednn_mm") and hasattr(ops, "onednn_mm")
