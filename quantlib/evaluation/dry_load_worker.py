"""Loads a quantized model that does not exist yet: ``python -m …dry_load_worker FOLDER``.

vLLM builds the whole model on the meta device, where tensors have shapes and no memory, and gets
every tensor that the checkpoint will have. Then one linear of each kind is given memory, prepared
by its kernel and multiplied once. There is no key-value cache, no profiling and no compilation.

The folder holds :data:`JOB_NAME` and the final ``config.json``, and gets :data:`OUTCOME_NAME`.
"""

from __future__ import annotations

import gc
import json
import os
import struct
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.checkpoint.checkpoint import CONFIG_NAME, Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import DTYPE_NAMES, TORCH_DTYPES
from quantlib.checks.linears import linear_schemes
from quantlib.checks.outer import outer_schemes, rewritten_outside
from quantlib.checks.scheme import resolve_format
from quantlib.evaluation.dry_load import JOB_NAME, OUTCOME_NAME, DryLoadJob, DryLoadOutcome
from quantlib.evaluation.refusals import in_words
from quantlib.formats import format_registry
from quantlib.models import model_registry
from quantlib.numbers.cached import CacheScales
from quantlib.numbers.quantized import QuantizedLinear, group_count
from quantlib.quantization import QuantizationSection
from quantlib.schemes import LinearScheme

_HEADER_NAME = "model.safetensors"


NO_DEVICE = "a machine without the device that it is for: names and shapes only"


class NotPossibleError(Exception):
    """Nothing can be said: it is not the model that is the trouble."""


class UnknownModelError(Exception):
    """vLLM has no class or no config for the model."""


def attempt(folder: Path, job: DryLoadJob) -> str:
    """Loads the model.

    Args:
        folder: Where ``config.json`` lies.
        job: What else is known of the checkpoint.

    Returns:
        The device that vLLM prepared it for: cpu or cuda, or that there was none.

    Raises:
        NotPossibleError: vLLM cannot be tried here.
        UnknownModelError: It does not know a model that transformers cannot run either.
        Exception: Whatever vLLM raises when it refuses the model.
    """
    try:
        from quantlib.evaluation.vllm_engine import preload, register_without_subprocess

        device = _device()
        preload()
        from vllm.config import set_current_vllm_config
        from vllm.distributed import (
            ensure_model_parallel_initialized,
            init_distributed_environment,
        )
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.model_loader.utils import initialize_model
        from vllm.utils.torch_utils import set_default_torch_dtype
    except Exception as error:
        raise NotPossibleError(f"vLLM cannot be imported: {in_words(error)}") from error
    lacking = "the device" if device == NO_DEVICE else None
    if job.emulated:
        from quantlib.evaluation import emulated_experts, emulated_linears

        emulated_linears.put_in_place()
        emulated_experts.put_in_place()
    elif job.without_kernels:
        from quantlib.evaluation import stand_in_kernels

        stand_in_kernels.put_in_place()
        lacking = lacking or "kernels"
    tensors = dict(_original_tensors(job) if job.original else final_tensors(folder, job))
    _write_header(folder / _HEADER_NAME, tensors)
    register_without_subprocess(json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")))
    if job.layout.obstacles:
        _require_known(folder)
    arguments = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype=job.dtype,
        enforce_eager=True,
        load_format="dummy",
        distributed_executor_backend="uni",
    )
    with _judging(lacking):
        config = arguments.create_engine_config()
    with set_current_vllm_config(config):
        try:
            backend = "nccl" if device == "cuda" else "gloo"
            rendezvous = f"file://{folder}/rendezvous"
            init_distributed_environment(1, 0, rendezvous, 0, backend)
            ensure_model_parallel_initialized(1, 1)
        except Exception as error:
            raise NotPossibleError(f"vLLM cannot start: {in_words(error)}") from error
        with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"):
            with _judging(lacking):
                model = initialize_model(config)
            loaded = _load(model, tensors)
        cached = not job.original and job.quantization.get("kv_cache", "none") != "none"
        _require_all(model, loaded, cached)
        if device == NO_DEVICE:
            return device
        # Linears of a scheme without a kernel cannot be prepared; the others may come first.
        quiet = suppress(Exception) if job.without_kernels else nullcontext()
        with quiet, set_default_torch_dtype(config.model_config.dtype):
            _prepare_linears(model, torch.device(device), config.model_config.dtype)
    return device


def _require_known(folder: Path) -> None:
    """Requires that vLLM has a config and a class for what transformers has no modules of."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.transformers_utils.config import get_config

    try:
        config = get_config(str(folder), trust_remote_code=False)
    except Exception as error:
        raise UnknownModelError(f"it does not take the config: {in_words(error)}") from error
    if not {*(config.architectures or ())}.intersection(ModelRegistry.get_supported_archs()):
        raise UnknownModelError("it has no class of that name")


def _device() -> str:
    """What vLLM runs on here; as a stand-in, for a vLLM whose devices are elsewhere, a CPU.

    The steps that need no GPU run on nodes without one. Names and shapes of a model's tensors are
    the same there.
    """
    from vllm import platforms

    if device := platforms.current_platform.device_type:
        return device
    from vllm.platforms.cpu import CpuPlatform

    platforms._current_platform = CpuPlatform()
    return NO_DEVICE


@contextmanager
def _judging(lacking: str | None) -> Iterator[None]:
    """What vLLM says where something is lacking may be about the stand-in, and refuses no model.

    Nor does what our emulation says.
    """
    try:
        yield
    except Exception as error:
        if lacking is None and _is_ours(error):
            lacking = "kernels"
        if lacking is not None:
            raise NotPossibleError(f"not without {lacking}: {in_words(error)}") from error
        raise


def _is_ours(error: Exception) -> bool:
    """Whether an error was raised by code of quantlib."""
    (*_, last) = traceback.walk_tb(error.__traceback__)
    return str(last[0].f_globals.get("__name__", "")).startswith("quantlib.")


def _original_tensors(job: DryLoadJob) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the original, without its content: on the meta device."""
    for name, (dtype, shape) in job.tensors.items():
        yield name, torch.empty(shape, dtype=TORCH_DTYPES[dtype], device="meta")


def final_tensors(folder: Path, job: DryLoadJob) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the checkpoint will hold, without its content: on the meta device."""
    source = FolderSource(folder)
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    original = Checkpoint(
        source,
        config,
        {
            name: TensorInfo(name, dtype, tuple(shape), "", 0, 0)
            for name, (dtype, shape) in job.tensors.items()
        },
    )
    section = QuantizationSection.model_validate(job.quantization)
    adapter = model_registry.adapter_of(config)(config, job.layout)
    made_by = format_registry.get_format(resolve_format(section))
    quantized: dict[str, tuple[tuple[int, int], LinearScheme]] = {}
    replaced: set[str] = set()
    for block, schemes in enumerate(linear_schemes(section, adapter)):
        replaced |= adapter.replaced(original, block, schemes)
        for linear, scheme in schemes.items():
            shape = adapter.linear_shape(block, linear)
            quantized[adapter.linear_name(block, linear)] = shape, scheme
    for kind, scheme in outer_schemes(section, adapter).items():
        quantized[adapter.outer_module(kind)] = adapter.outer_shape(kind), scheme
    rewritten = rewritten_outside(section, adapter)
    replaced.update(rewritten)
    for name in rewritten:
        if name.removesuffix(".weight") not in quantized:  # the head that was the embedding
            info = original.tensors[f"{adapter.embedding}.weight"]
            yield name, torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype], device="meta")
    for name, info in original.tensors.items():
        if name not in replaced:
            yield name, torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype], device="meta")
    stored = TORCH_DTYPES[adapter.stored_dtype(original)]
    for name, (shape, scheme) in quantized.items():
        made = _without_codes(shape, scheme, stored)
        for part, tensor in made_by.tensors(made, scheme.activations).items():
            yield f"{name}.{part}", tensor.to("meta")
    if section.cache is None:
        return
    for block in range(adapter.blocks):
        for each in adapter.layout.attention(block):
            heads = torch.ones(each.heads, each.width), torch.ones(each.query_heads, each.width)
            scales = CacheScales.of(section.cache, heads[0], heads[0], heads[1])
            for part, tensor in made_by.cache_tensors(scales).items():
                yield f"{adapter.block_prefix(block)}{each.name}.{part}", tensor.to("meta")


def _without_codes(
    shape: tuple[int, int], linear: LinearScheme, stored: torch.dtype
) -> QuantizedLinear:
    rows, columns = shape
    scheme = linear.weights
    groups = group_count(columns, scheme.group_size)
    codes = torch.uint8 if scheme.type == "int" else torch.float8_e4m3fn
    scales = {"e4m3": torch.float8_e4m3fn, "e8m0": torch.uint8}.get(scheme.scale, stored)
    with torch.device("meta"):
        return QuantizedLinear(
            codes=torch.empty(rows, columns, dtype=codes),
            scales=torch.empty(scheme.scale_rows(rows), groups, dtype=scales),
            zero_points=None if scheme.symmetric else torch.empty(rows, groups, dtype=torch.uint8),
            scheme=scheme,
            input_scale=torch.empty(1) if linear.is_static else None,
            overall=torch.empty(1) if scheme.scale == "e4m3" else None,
        )


def _write_header(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors header without data: vLLM looks up there what is quantized."""
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def _load(model: Any, tensors: Mapping[str, Tensor]) -> set[str] | None:
    """Gives the model its tensors; an error of vLLM's gets a note of which one it was about."""
    given = ""

    def give() -> Iterator[tuple[str, Tensor]]:
        nonlocal given
        for name, tensor in tensors.items():
            given = name
            yield name, tensor

    try:
        return model.load_weights(give())
    except Exception as error:
        error.add_note(f"when it gets {given}, {list(tensors[given].shape)}")
        raise


def _require_all(model: nn.Module, loaded: set[str] | None, cached: bool) -> None:
    """Requires that every parameter of a linear is in the checkpoint: vLLM itself would not ask.

    And the scales of every module of attention, where the checkpoint has any.
    """
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        UnquantizedEmbeddingMethod,
        VocabParallelEmbedding,
    )

    if loaded is None:
        return
    needed = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, LinearBase)
        or (
            isinstance(module, VocabParallelEmbedding)
            and not isinstance(module.quant_method, UnquantizedEmbeddingMethod)
        )
        for part, _ in module.named_parameters(recurse=False)
    }
    if cached:
        needed |= {
            f"{name}.{part}"
            for name, module in model.named_modules()
            if isinstance(module, Attention)
            for part in ("k_scale", "v_scale")
        }
    missing = sorted(needed - loaded)
    if missing:
        raise ValueError(
            f"the checkpoint would lack {len(missing)} tensors that it asks for, first {missing[0]}"
        )


def _prepare_linears(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Runs the kernels of quantized linears, one linear of each kind."""
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        UnquantizedEmbeddingMethod,
    )

    seen, exact = set(), (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
    for module in model.modules():
        if not isinstance(module, LinearBase | ParallelLMHead):
            continue
        method = module.quant_method
        shapes = tuple((name, part.shape) for name, part in module.named_parameters())
        if isinstance(method, exact) or (type(method), shapes) in seen:
            continue
        seen.add((type(method), shapes))
        for name, part in list(module.named_parameters(recurse=False)):
            setattr(module, name, _with_memory(part, device))
        method.process_weights_after_loading(module)
        method.apply(module, torch.zeros(1, module.input_size, dtype=dtype, device=device))


def _with_memory(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """A parameter of the same kind that holds ones."""
    real = nn.Parameter(
        torch.ones(parameter.shape, dtype=parameter.dtype, device=device), requires_grad=False
    )
    real.__class__ = parameter.__class__  # vLLM's parameters know how they are cut and packed
    real.__dict__.update(parameter.__dict__)
    return real


def _outcome(folder: Path) -> DryLoadOutcome:
    job = DryLoadJob.model_validate_json((folder / JOB_NAME).read_bytes())
    try:
        return DryLoadOutcome(result="loaded", detail=attempt(folder, job))
    except NotPossibleError as error:
        return DryLoadOutcome(result="skipped", detail=str(error))
    except UnknownModelError as error:
        return DryLoadOutcome(result="unknown", detail=str(error))
    except Exception as error:
        if isinstance(error, NotImplementedError | RuntimeError) and "meta" in str(error):
            # What torch cannot do on the meta device is no fault of the model.
            detail = "vLLM cannot build it without its weights"
            return DryLoadOutcome(result="skipped", detail=detail)
        return DryLoadOutcome(result="refused", detail=in_words(error))


def main() -> None:
    """Tries what the folder on the command line asks for."""
    gc.disable()  # collecting takes a fifth of the time of importing vLLM
    folder = Path(sys.argv[1])
    (folder / OUTCOME_NAME).write_text(_outcome(folder).model_dump_json(), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking the imported modules apart would take two seconds


if __name__ == "__main__":
    main()
