"""Which arguments of vLLM's server go with a checkpoint. Imports neither torch nor vLLM."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantlib.checkpoint.quantized import stated_quantization
from quantlib.checks.sharding import ROW_PARALLEL, Sharding, joined, sharding_of
from quantlib.errors import InvalidInputError
from quantlib.evaluation.choose_engine import installed_vllm
from quantlib.formats import format_registry
from quantlib.runtime.foreign_json import parse_mapping
from quantlib.schemes import WeightScheme
from quantlib.serving.options import serve_options, serving_dtype
from quantlib.serving.vllm_config import VLLM_CONFIG_NAME, parse_vllm_config

CONFIG_NAME = "config.json"

_CPU_WORKER = "quantlib.evaluation.vllm_cpu_worker.CorrectedCpuWorker"
"""Computes as the gate does what vLLM's own worker for CPUs gets wrong without an error."""


def checkpoint_arguments(folder: Path) -> dict[str, Any]:
    """The arguments that a checkpoint is served well with.

    They stand in its ``vllm_config.json``; without that file, which other tools do not write, they
    are derived from ``config.json``.

    Raises:
        InvalidInputError: Neither file can be read, or ``vllm_config.json`` says more than a
            checkpoint may.
    """
    path = folder / VLLM_CONFIG_NAME
    if path.exists():
        return parse_vllm_config(_read(path), str(path)).arguments()
    return {"dtype": serving_dtype(read_config(folder))}


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed ``config.json`` of a checkpoint.

    Raises:
        InvalidInputError: It is missing or no JSON mapping.
    """
    path = folder / CONFIG_NAME
    return parse_mapping(_read(path), str(path), infinite=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError.one(
            str(path),
            f"cannot be read: {error.strerror}",
            "give a folder that holds a model, as `quantlib quantize` writes one",
        ) from None


def checkpoint_sharding(folder: Path) -> Sharding | None:
    """What tensor parallelism divides in a checkpoint; None where its config does not tell.

    Raises:
        InvalidInputError: ``config.json`` is missing or no JSON mapping.
    """
    config = read_config(folder)
    if not all(isinstance(config.get(k), int) for k in ("num_attention_heads", "hidden_size")):
        return None
    stated = stated_quantization(config)
    if stated is None or not isinstance(stated[1], dict):
        return sharding_of(config, None)
    quantization = stated[1]
    try:
        scheme_of = format_registry.get_format(str(quantization.get("quant_method"))).read_schemes(
            quantization
        )
    except (InvalidInputError, KeyError, TypeError, ValueError):
        return sharding_of(
            config,
            _foreign_scheme(quantization),
            block=_block_shape(quantization),
            whole_outputs=quantization.get("quant_method") != "fp8",
        )
    parts: dict[WeightScheme, set[str]] = {}
    for block in range(int(config.get("num_hidden_layers", 1))):
        for place, part in itertools.product(("self_attn", "mlp"), ROW_PARALLEL):
            if scheme := scheme_of(f"model.layers.{block}.{place}.{part}"):
                parts.setdefault(scheme.weights, set()).add(part)
    if not parts:
        return sharding_of(config, None)
    return joined([sharding_of(config, *each) for each in parts.items()])


def _block_shape(quantization: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of the blocks that share a scale, as FP8 checkpoints state them."""
    stated = quantization.get("weight_block_size")
    groups = quantization.get("config_groups")
    if stated is None and isinstance(groups, dict):
        schemes = [g.get("weights") for g in groups.values() if isinstance(g, dict)]
        stated = next(
            (scheme.get("block_structure") for scheme in schemes if isinstance(scheme, dict)), None
        )
    if not isinstance(stated, list) or len(stated) != 2:
        return None
    rows, columns = stated
    if all(isinstance(side, int) and side > 0 for side in (rows, columns)):
        return rows, columns
    return None


def _foreign_scheme(quantization: dict[str, Any]) -> WeightScheme | None:
    """The scheme of another tool's checkpoint, by the keys that AWQ and GPTQ tools write."""
    bits, size = quantization.get("bits"), quantization.get("group_size")
    if bits not in (2, 4, 8) or not isinstance(size, int) or not (size > 0 or size == -1):
        return None
    return WeightScheme(bits=bits, group_size=size)


def choose_size(sharding: Sharding | None, wanted: int | None, gpus: int) -> int:
    """Over how many GPUs a checkpoint is served.

    Args:
        sharding: Of the checkpoint; None where nothing is known, which allows every size.
        wanted: What was asked for, or None for as many of the GPUs as can share the model.
        gpus: How many there are; 0 on a CPU.

    Raises:
        InvalidInputError: So many GPUs cannot share the model.
    """
    if wanted is None:
        sizes = [1] if sharding is None else sharding.sizes()
        return max(size for size in sizes if size <= max(gpus, 1))
    if sharding is not None and (problems := sharding.problems(wanted)):
        raise InvalidInputError.one(
            "--tensor-parallel-size",
            f"{wanted} GPUs cannot share this checkpoint: {'; '.join(problems)}",
            f"sizes that work: {', '.join(map(str, sharding.sizes()))}",
        )
    return wanted


def visible_gpus() -> int:
    """How many GPUs the installed vLLM could use. Imports torch where they have to be counted."""
    vllm = installed_vllm()
    if vllm is None or vllm.on_cpu:
        return 0
    import torch

    return torch.cuda.device_count()


def serve_command(model: Path, arguments: dict[str, Any], further: Sequence[str]) -> list[str]:
    """The command that serves a checkpoint.

    On a CPU it leaves vLLM's compilation out, which takes minutes there before the first answer,
    and has vLLM compute by our worker, so that quantlib has to be installed there.

    Args:
        model: Folder of the checkpoint.
        arguments: Values by vLLM's names, with underscores.
        further: Words of a command line, which win over ``arguments``.
    """
    vllm = installed_vllm()
    start = ["vllm.entrypoints.cli.main", "serve"]
    if vllm is not None and vllm.distribution != "vllm":
        # vLLM's own command asks for the version of a distribution called vllm, its server not.
        start = ["vllm.entrypoints.openai.api_server", "--model"]
    if vllm is not None and vllm.on_cpu:
        arguments = arguments | {"enforce_eager": True, "worker_cls": _CPU_WORKER}
    given = {argument.partition("=")[0].replace("--no-", "--") for argument in further}
    ours = {
        key: value for key, value in arguments.items() if f"--{key.replace('_', '-')}" not in given
    }
    return [sys.executable, "-m", *start, str(model), *serve_options(ours), *further]
