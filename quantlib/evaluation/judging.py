"""What a checkpoint will be judged by, known before it is made. Imports no engine."""

from __future__ import annotations

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FileSource
from quantlib.checks.model import cpu_problem
from quantlib.evaluation.choose_engine import (
    dequantized_reason,
    installed_vllm,
    vllm_judges_on_cpu,
)
from quantlib.formats.stored import stored
from quantlib.models import BaseModelAdapter
from quantlib.recipe import QuantizationSection, Recipe


def dequantized_checkpoint_reason(
    section: QuantizationSection, adapter: BaseModelAdapter, engine: str, device: str
) -> str | None:
    """Why a checkpoint is judged by its dequantized weights, and what that leaves open.

    None where it is judged as it is served. transformers computes from the codes itself, and rounds
    activations as vLLM does.

    Args:
        section: How the model is quantized.
        adapter: The model's family.
        engine: What judges: vllm or transformers.
        device: auto, cpu or cuda.
    """
    if engine != "vllm" or not vllm_judges_on_cpu(device):
        return None
    problem = cpu_problem(section, adapter)
    if problem is None:
        return None
    left = "its loader and layout are left to the dry load"
    stated = (scheme.activations for scheme in section.stated_schemes().values())
    if rounded := [each for each in dict.fromkeys(stated) if each != "none"]:
        left += f", and what rounding activations ({', '.join(rounded)}) costs is not judged"
    return f"{problem}; {left}"


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


def dequantized_source_reason(source: FileSource, engine: str, device: str) -> str | None:
    """Why an original that is quantized is judged by what its weights stand for; None if it is not.

    Args:
        source: Where it lies.
        engine: What judges: vllm or transformers.
        device: auto, cpu or cuda.

    Raises:
        InvalidInputError: It is quantized in a way that is not read.
    """
    found = stored(Checkpoint.open(source))
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
    return (
        bool(adapter.layout.renamed)
        or dequantized_source_reason(source, engine, device) is not None
        or dequantized_checkpoint_reason(recipe.quantization, adapter, engine, device) is not None
    )


def in_words(reason: str) -> str:
    """A reason of :func:`dequantized_checkpoint_reason` as a clause."""
    return f"judged by its dequantized weights: {reason}"
