"""What a checkpoint will be judged by, known before it is made. Imports no engine."""

from __future__ import annotations

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FileSource
from quantlib.checks.cache import cache_cpu_problem
from quantlib.checks.model import cpu_problem, is_emulated, used_schemes
from quantlib.evaluation.choose_engine import (
    dequantized_reason,
    installed_vllm,
    vllm_judges_on_cpu,
)
from quantlib.formats.stored import stored
from quantlib.models import BaseModelAdapter
from quantlib.quantization import QuantizationSection
from quantlib.recipe import Recipe
from quantlib.schemes import EXACT_INPUTS


def dequantized_checkpoint_reason(
    section: QuantizationSection, adapter: BaseModelAdapter, engine: str, device: str
) -> str | None:
    """Why a checkpoint is judged by its dequantized weights, and what that leaves open.

    None where it is computed as it is served, by a kernel or by emulation. transformers computes
    from the codes itself, and rounds activations as vLLM does.

    Args:
        section: How the model is quantized.
        adapter: The model's family.
        engine: What judges: vllm or transformers.
        device: auto, cpu or cuda.
    """
    problem = _lacking(section, adapter, engine, device)
    if problem is None or is_emulated(section, adapter):
        return None
    left = "its loader and layout are left to the dry load"
    if any(scheme.activations != EXACT_INPUTS for scheme in used_schemes(section, adapter)[0]):
        left += ", and what rounding activations costs is not judged"
    if section.cache is not None and cache_cpu_problem(section, adapter) is not None:
        left += f", and what a KV cache in {section.cache.words} costs is not judged"
    return f"{problem}; {left}"


def emulated_checkpoint_reason(
    section: QuantizationSection, adapter: BaseModelAdapter, engine: str, device: str
) -> str | None:
    """Why a checkpoint is computed by emulation, with inputs rounded as they are served.

    None where it is computed by a kernel, or judged by its dequantized weights.

    Args:
        section: How the model is quantized.
        adapter: The model's family.
        engine: What judges: vllm or transformers.
        device: auto, cpu or cuda.
    """
    return _lacking(section, adapter, engine, device) if is_emulated(section, adapter) else None


def _lacking(
    section: QuantizationSection, adapter: BaseModelAdapter, engine: str, device: str
) -> str | None:
    """What vLLM lacks for serving a checkpoint here, if it judges and lacks something."""
    if engine != "vllm" or not vllm_judges_on_cpu(device):
        return None
    return cpu_problem(section, adapter)


def dequantized_foreign_reason(problem: str | None, engine: str, device: str) -> str | None:
    """The same of a checkpoint that was made elsewhere.

    Args:
        problem: Why vLLM cannot serve it on a CPU; None where it can.
        engine: What judges: vllm or transformers.
        device: auto, cpu or cuda.
    """
    reason = dequantized_reason(engine, problem, device)
    if reason is None:
        return None
    return f"{reason}; its loader and layout, and what rounding activations costs, are not judged"


def dequantized_source_reason(
    source: FileSource, engine: str, device: str, *, streamed: bool = False
) -> str | None:
    """Why an original that is quantized is judged by what its weights stand for; None if it is not.

    Args:
        source: Where it lies.
        engine: What judges: vllm or transformers.
        device: auto, cpu or cuda.
        streamed: Whether it is read block by block in the engine's place.

    Raises:
        InvalidInputError: It is quantized in a way that is not read.
    """
    found = stored(Checkpoint.open(source))
    if streamed and found is not None:
        return "it is read block by block, by transformers' modules, which have no kernels for it"
    return None if found is None else dequantized_reason(engine, found.cpu_problem, device)


def writes_plain_model(
    recipe: Recipe, source: FileSource, adapter: BaseModelAdapter, device: str
) -> bool:
    """Whether validation writes the original or the checkpoint anew, as what its weights stand for.

    Args:
        recipe: What to do.
        source: The original.
        adapter: Its family.
        device: auto, cpu or cuda.
    """
    engine = recipe.validation.engine if installed_vllm() else "transformers"
    written = bool(adapter.layout.renamed) or (
        dequantized_source_reason(source, engine, device) is not None
    )
    return (written and recipe.validation.reference != "streamed") or dequantized_checkpoint_reason(
        recipe.quantization, adapter, engine, device
    ) is not None


def in_words(dequantized: str | None, emulated: str | None = None) -> str | None:
    """Reasons of :func:`dequantized_checkpoint_reason` and of the emulation as a clause, if any."""
    if dequantized is not None:
        return f"judged by its dequantized weights: {dequantized}"
    if emulated is not None:
        return f"computed by emulation, without a figure for speed: {emulated}"
    return None


def not_by_kernels(
    section: QuantizationSection, adapter: BaseModelAdapter, engine: str, device: str
) -> str | None:
    """How a checkpoint will be judged in another way than by vLLM's kernels, as a clause; or None.

    Args:
        section: How the model is quantized.
        adapter: The model's family.
        engine: What judges: vllm or transformers.
        device: auto, cpu or cuda.
    """
    arguments = section, adapter, engine, device
    return in_words(
        dequantized_checkpoint_reason(*arguments), emulated_checkpoint_reason(*arguments)
    )
