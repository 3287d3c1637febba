"""Lets vLLM refuse a checkpoint before the work that makes it. Imports neither torch nor vLLM.

The work itself is done by a process of its own: :mod:`quantlib.evaluation.dry_load_worker`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from quantlib.checkpoint.checkpoint import CONFIG_NAME, Checkpoint
from quantlib.checks.linears import checkpoint_scheme
from quantlib.checks.model import cpu_problem, is_emulated
from quantlib.checks.outer import unties
from quantlib.errors import InvalidInputError
from quantlib.evaluation.choose_engine import installed_vllm
from quantlib.models import BaseModelAdapter, Layout
from quantlib.models.fusion import not_served, vllm_version
from quantlib.models.servable import untied, with_causal_architecture
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import quantizer_registry
from quantlib.runtime.keeper import kept
from quantlib.runtime.process_group import SECONDS_TO_END, end_kept, last_lines
from quantlib.serving.options import serving_dtype
from quantlib.store import Receipt, StepOutput, Store, commit_step

STEP = "dry_load"
JOB_NAME = "job.json"
OUTCOME_NAME = "outcome.json"
SWITCH_VARIABLE = "QUANTLIB_DRY_LOAD"
"""Environment variable: ``never`` leaves the dry load out, as where another vLLM will serve."""

_QUANTIZATION = "quantization_config"
_SECONDS = 600
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


class DryLoadJob(BaseModel):
    """What the worker has to know besides ``config.json``.

    Attributes:
        quantization: The recipe's section.
        tensors: Dtype, as safetensors writes it, and shape of the original's tensors.
        dtype: What the model is served in.
        layout: What the model is made of.
        without_kernels: Whether vLLM lacks kernels for some of it here, which then only has to be
            built and loaded.
        emulated: Whether our emulation then stands in for them, so that what vLLM refuses is the
            model.
        original: Whether the original is loaded, as it is, and no quantized model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quantization: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    dtype: str
    layout: Layout
    without_kernels: bool = False
    emulated: bool = False
    original: bool = False


class DryLoadOutcome(BaseModel):
    """What the worker found.

    Attributes:
        result: What vLLM did; ``unknown`` where it has no class or config for the architecture.
        detail: The device of a model that was loaded, else vLLM's reason.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    result: Literal["loaded", "refused", "skipped", "unknown"]
    detail: str


class _SkippedError(Exception):
    """The model could not be tried."""


class _UnknownError(Exception):
    """vLLM does not know the architecture."""


def dry_load(
    store: Store,
    section: QuantizationSection,
    model: Receipt,
    checkpoint: Checkpoint,
    adapter: BaseModelAdapter,
    environment: Mapping[str, str] = os.environ,
    *,
    validated: bool = True,
) -> str:
    """Lets vLLM build the quantized model with dummy weights, once for equal configurations.

    An architecture that neither vLLM nor transformers knows is no fault of the recipe: its
    checkpoint can be made, and not be judged.

    Args:
        store: Gets the receipt of a model that was loaded.
        section: How the model will be quantized.
        model: Receipt of the fetch step.
        checkpoint: The original's headers.
        adapter: The original's family.
        environment: Where :data:`SWITCH_VARIABLE` is looked up.
        validated: Whether the checkpoint will be judged.

    Returns:
        What was done, or why nothing was, as a sentence.

    Raises:
        InvalidInputError: vLLM refuses the model, and the problem quotes it; or it does not know
            the architecture of one that is to be judged.
    """
    if environment.get(SWITCH_VARIABLE) == "never":
        return f"Not tried with dummy weights: {SWITCH_VARIABLE} is never."
    vllm = installed_vllm()
    architecture = adapter.layout.architecture
    unserved = not_served(architecture)
    if unserved and adapter.layout.obstacles and (vllm is None or vllm.version == vllm_version()):
        return _unknown(vllm_version(), adapter, "it has no class of that name", validated)
    if vllm is None:
        of_table = f"; {unserved}" if unserved else ""
        return f"Not tried with dummy weights: vLLM is not installed here{of_table}."
    missing = cpu_problem(section, adapter) if vllm.on_cpu else None
    scheme = checkpoint_scheme(section, adapter)
    quantizer = quantizer_registry.get_quantizer(section.method)(section)
    plain = with_causal_architecture(adapter.config)
    config = untied(plain) if unties(section, adapter) else dict(plain)
    config[_QUANTIZATION] = quantizer._add_vllm_compatibility(scheme)
    job = DryLoadJob(
        quantization=section.model_dump(mode="json"),
        tensors={name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()},
        dtype=serving_dtype(adapter.config),
        layout=adapter.layout,
        without_kernels=missing is not None,
        emulated=missing is not None and is_emulated(section, adapter),
    )

    def work(output: StepOutput) -> None:
        outcome = _run(output.scratch / STEP, config, job)
        if outcome.result == "skipped":
            raise _SkippedError(outcome.detail)
        if outcome.result == "unknown":
            raise _UnknownError(outcome.detail)
        if outcome.result == "refused":
            changes = {"original": True, "without_kernels": False, "emulated": False}
            original = _run(output.scratch / "original", plain, job.model_copy(update=changes))
            if original.result == "refused":
                raise InvalidInputError.one(
                    f"vLLM {vllm.version}",
                    f"refuses the original, and so what any recipe makes of it: {original.detail}",
                    f"set {SWITCH_VARIABLE}=never if another vLLM will serve it",
                )
            raise InvalidInputError.one(
                f"vLLM {vllm.version}",
                f"refuses the model that this recipe makes: {outcome.detail}",
                f"{f'{unserved} by any recipe;' if unserved else 'change the recipe, or'} set "
                f"{SWITCH_VARIABLE}=never if another vLLM will serve it",
            )
        output.facts["device"] = outcome.detail

    parameters = {
        "vllm": f"{vllm.distribution} {vllm.version}",
        _QUANTIZATION: config[_QUANTIZATION],
        "dtype": job.dtype,
    }
    try:
        receipt = commit_step(store, STEP, parameters, {"model": model}, work)
    except _SkippedError as error:
        return f"Not tried with dummy weights: {error}."
    except _UnknownError as error:
        return _unknown(vllm.version, adapter, str(error), validated)
    said = f"vLLM {vllm.version} loaded the model with dummy weights on {receipt.facts['device']}"
    if missing:
        return f"{said}, by names and shapes where it has no kernel: {missing}."
    return f"{said}."


def _unknown(version: str, adapter: BaseModelAdapter, detail: str, validated: bool) -> str:
    architecture = adapter.layout.architecture or "a model whose config names no architecture"
    what = f"does not know {architecture}: {detail}"
    if validated:
        raise InvalidInputError.one(
            f"vLLM {version}",
            f"{what}, so that the checkpoint cannot be validated",
            "quantlib quantize makes it without --validate; nothing unproven is published",
        )
    return (
        f"vLLM {version} {what}. The checkpoint is made, and cannot be validated or served by it."
    )


def _run(folder: Path, config: Mapping[str, Any], job: DryLoadJob) -> DryLoadOutcome:
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
    (folder / JOB_NAME).write_text(job.model_dump_json(), encoding="utf-8")
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            kept(
                [sys.executable, "-m", "quantlib.evaluation.dry_load_worker", str(folder)],
                SECONDS_TO_END,
            ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_ENVIRONMENT | os.environ,
        )
    try:
        process.wait(_SECONDS)
    except subprocess.TimeoutExpired:
        return DryLoadOutcome(result="skipped", detail=f"vLLM took more than {_SECONDS} s")
    finally:
        end_kept(process)
    outcome = folder / OUTCOME_NAME
    if not outcome.exists():
        detail = f"its process ended with {process.returncode}: {last_lines(log)}"
        return DryLoadOutcome(result="skipped", detail=detail)
    return DryLoadOutcome.model_validate_json(outcome.read_bytes())
