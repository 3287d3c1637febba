"""A quantized checkpoint as the plain one that it stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from quantlib.checkpoint.checkpoint import FLOAT_DTYPES, Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.quantized import stated_quantization, without_quantization
from quantlib.checkpoint.view import ViewSource
from quantlib.errors import InvalidInputError, Problem
from quantlib.formats.registry import format_registry
from quantlib.formats.stored.by_format import read_by_format
from quantlib.formats.stored.compressed import read_compressed
from quantlib.formats.stored.faults import Faults, shown
from quantlib.formats.stored.found import Found
from quantlib.formats.stored.fp8 import read_fp8
from quantlib.formats.stored.mxfp4 import read_mxfp4
from quantlib.formats.stored.packed import read_awq, read_gptq

Reader = Callable[[Checkpoint, Mapping[str, Any], str, Faults], Found]
"""Finds what is quantized, by the headers, the config's ``quantization_config`` and the dtype of
the dequantized weights; what is wrong goes to the faults."""

READERS: Mapping[str, Reader] = {
    "awq": read_awq,
    "compressed-tensors": read_compressed,
    "fp8": read_fp8,
    "gptq": read_gptq,
    "mxfp4": read_mxfp4,
}
"""What is read, by the ``quant_method`` of its config, of whatever tool's making; of other methods
what formats write that packages add."""

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_EXPERTS = "vLLM's CPU kernels for quantized experts need AMX instructions"


def plain(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint without quantization: itself, or what it stands for.

    Its tensors are the dequantized weights, by their own names, shapes and dtype, among those that
    are plain already; scales are left out, and its config says nothing of them. A range of a
    dequantized weight that is read by :attr:`Checkpoint.source` is computed from the bytes that
    hold it. Weights are in the dtype that the config names, else in that of most plain tensors,
    else in bfloat16.

    Raises:
        InvalidInputError: It is quantized in a way that is not read, or its tensors do not fit its
            config; all problems at once.
    """
    found = stored(checkpoint)
    if found is None:
        return checkpoint
    view = ViewSource(checkpoint.source, found.weights)
    # A weight stands where the first tensor stood that it lies in.
    places = {
        next(iter(weight.parts.values())).name: view.tensors[weight.name]
        for weight in found.weights
    }
    tensors: dict[str, TensorInfo] = {}
    for name, info in checkpoint.tensors.items():
        if name in places:
            tensors[places[name].name] = places[name]
        elif name not in found.used:
            tensors[name] = info
    config = without_quantization(checkpoint.config)
    copies = tuple(info for info in checkpoint.copies if info.name in tensors)
    return replace(
        checkpoint,
        source=view,
        config=config,
        tensors=tensors,
        copies=copies,
        quantized_bytes=sum(info.bytes for info in checkpoint.tensors.values()),
    )


def stored(checkpoint: Checkpoint) -> Found | None:
    """How a checkpoint's weights lie quantized; None where its config says that they do not.

    Raises:
        InvalidInputError: It is quantized in a way that is not read, or its tensors do not fit its
            config; all problems at once.
    """
    stated = stated_quantization(checkpoint.config)
    if stated is None:
        return None
    field, given = stated
    method = _method(given)
    reader = _reader(method or "")
    if reader is None or not isinstance(given, Mapping):
        raise InvalidInputError([_unread(field, given, method)])
    faults = Faults(field)
    found = reader(checkpoint, given, plain_dtype(checkpoint), faults)
    if not faults and not found.weights and not given.get("kv_cache_scheme"):
        faults.setting("", f"says {shown(method)}, but no tensor is stored so")
    if faults:
        raise InvalidInputError(faults.problems())
    if found.cpu_problem is None and any(".experts." in weight.name for weight in found.weights):
        found.cpu_problem = _EXPERTS
    return found


def _reader(method: str) -> Reader | None:
    if (reader := READERS.get(method)) is not None:
        return reader
    for name in format_registry:
        made_by = format_registry.get_format(name)
        if made_by.vllm_name == method:
            return partial(read_by_format, made_by)
    return None


def described(checkpoint: Checkpoint) -> str | None:
    """What a report says of a quantized checkpoint that is quantized anew; None of a plain one.

    Raises:
        InvalidInputError: It is quantized in a way that is not read.
    """
    found = stored(checkpoint)
    if found is None:
        return None
    return f"{found.words}, dequantized to {found.weights[0].dtype} while reading"


def plain_dtype(checkpoint: Checkpoint) -> str:
    """The dtype of dequantized weights, as safetensors writes it."""
    text = checkpoint.config.get("text_config")
    for config in (checkpoint.config, text if isinstance(text, Mapping) else {}):
        stated = config.get("dtype") or config.get("torch_dtype")
        if isinstance(stated, str) and (named := _DTYPES.get(stated.removeprefix("torch."))):
            return named
    held: Counter[str] = Counter()
    for name, info in checkpoint.tensors.items():
        if info.dtype in FLOAT_DTYPES and "scale" not in name.rpartition(".")[2]:
            held[info.dtype] += info.bytes
    return held.most_common(1)[0][0] if held else "BF16"


def _method(given: Any) -> str | None:
    method = given.get("quant_method") if isinstance(given, Mapping) else None
    if isinstance(method, str):
        return method.lower().replace("_", "-")
    if isinstance(given, Mapping) and "config_groups" in given:
        return "compressed-tensors"  # old configs do not name it
    return None


def _unread(field: str, given: Any, method: str | None) -> Problem:
    said = f"quant_method {shown(method)}" if method else shown(given)
    return Problem(
        f"config.json: {field}",
        f"says {said}, which is not read; what is: {', '.join(READERS)}",
        "give the original checkpoint",
    )
