"""What of a recipe goes with a model. Imports neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from quantlib.checkpoint.checkpoint import FLOAT_DTYPES, WHOLE_DTYPES, Checkpoint
from quantlib.checks.cache import cache_cpu_problem, cache_problems
from quantlib.checks.linears import (
    exact_linears,
    linear_schemes,
    rounded_drafts,
    unsuited_linears,
)
from quantlib.checks.outer import KERNEL_MULTIPLE, outer_problems, outer_schemes
from quantlib.checks.patterns import pattern_problems
from quantlib.checks.scheme import (
    is_size_supported,
    needs_calibration,
    resolve_format,
    with_size,
    with_sizes,
)
from quantlib.checks.shapes import shape_problems
from quantlib.checks.sharding import Sharding, joined, sharding_of
from quantlib.errors import Problem
from quantlib.formats import format_registry
from quantlib.models import BaseModelAdapter
from quantlib.models.layout import without_expert
from quantlib.outlier_suppression import outlier_suppression_registry
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import quantizer_registry
from quantlib.recipe import Recipe
from quantlib.scheme_rules import EXACT
from quantlib.schemes import LinearScheme, WeightScheme

WITHOUT_TEXT = "--method minmax, --recipe fp8, or method hqq with options {importance: none}"
"""What needs no forward."""


def model_problems(
    recipe: Recipe, checkpoint: Checkpoint, adapter: BaseModelAdapter, *, validated: bool = True
) -> list[Problem]:
    """What of a recipe does not go with a model.

    Args:
        recipe: A valid recipe.
        checkpoint: The model's headers; of a quantized one those of what it stands for.
        adapter: The model's family.
        validated: Whether the checkpoint will be compared with the original.
    """
    problems = [
        *_dtype_problems(checkpoint, adapter),
        *_forward_problems(recipe, adapter, validated),
    ]
    if problems:
        return problems
    problems = pattern_problems(recipe.quantization, checkpoint, adapter)
    problems += _layer_problems(recipe.quantization, adapter)
    if not problems:
        problems = _fusion_problems(recipe.quantization, adapter)
    problems += _expert_problems(recipe.quantization, adapter)
    problems += cache_problems(recipe.quantization, adapter)
    problems += _draft_problems(recipe.quantization, adapter)
    problems += shape_problems(recipe.quantization, adapter)
    problems += outer_problems(recipe.quantization, adapter)
    if recipe.outlier_suppression is not None:
        suppression = recipe.outlier_suppression
        suppressor = outlier_suppression_registry.get_suppressor(suppression.method)
        problems += suppressor(suppression.options).problems(adapter)
    problems += sharing_problems(
        recipe.quantization,
        adapter,
        recipe.serving.tensor_parallel_size,
        "serving.tensor_parallel_size",
    )
    for field, section in (
        ("calibration", recipe.calibration if needs_calibration(recipe) else None),
        ("validation", recipe.validation if validated else None),
    ):
        if section is not None and section.sequence_length > adapter.max_sequence_length:
            problems.append(
                Problem(
                    f"{field}.sequence_length",
                    f"{section.sequence_length} is above the model's {adapter.max_sequence_length}",
                )
            )
    return problems


def _forward_problems(
    recipe: Recipe, adapter: BaseModelAdapter, validated: bool
) -> Iterator[Problem]:
    """That text has to be run through a model which cannot be walked."""
    for obstacle in adapter.layout.obstacles:
        if needs_calibration(recipe):
            remedy = f"{obstacle.remedy}, or " if obstacle.remedy else ""
            yield Problem(
                obstacle.where,
                f"{obstacle.what}, so that no text can be run through its blocks",
                f"{remedy}quantize without text: {WITHOUT_TEXT}",
            )
        elif validated and recipe.validation.engine == "transformers":
            yield Problem(
                "validation.engine",
                f"transformers cannot judge it: {obstacle.where}: {obstacle.what}",
                "let vllm judge, or quantize without --validate",
            )
        if validated and recipe.validation.reference == "streamed":
            yield Problem(
                "validation.reference",
                f"the original cannot be streamed: {obstacle.where}: {obstacle.what}",
                "say engine",
            )


def _dtype_problems(checkpoint: Checkpoint, adapter: BaseModelAdapter) -> list[Problem]:
    """Weights of blocks that are no floating-point numbers; tables of whole numbers may be."""
    prefixes = tuple(adapter.block_prefix(block) for block in range(adapter.blocks))
    return [
        Problem(name, f"has dtype {info.dtype}", f"supported: {', '.join(FLOAT_DTYPES)}")
        for name, info in checkpoint.tensors.items()
        if info.dtype not in FLOAT_DTYPES
        and name.startswith(prefixes)
        and (name.endswith("weight") or not info.dtype.startswith(WHOLE_DTYPES))
    ]


def _layer_problems(section: QuantizationSection, adapter: BaseModelAdapter) -> list[Problem]:
    outside = [layer for layer in section.layers or () if layer >= adapter.blocks]
    if not outside:
        return []
    return [
        Problem(
            "quantization.layers",
            f"{', '.join(map(str, outside))} out of range",
            f"the model has blocks 0 to {adapter.blocks - 1}",
        )
    ]


def _draft_problems(section: QuantizationSection, adapter: BaseModelAdapter) -> Iterator[Problem]:
    """That draft layers are to be rounded where there are none that can be."""
    if section.draft_layers and not rounded_drafts(section, adapter):
        what = "the model has no layers that draft tokens"
        if adapter.drafts:
            what = "ignore leaves no linear of the model's draft layers to round"
            if not adapter.layout.draft_blocks:
                what = "no block of the model has the linears of its draft layers"
        yield Problem("quantization.draft_layers", what, "leave it out")


def _fusion_problems(section: QuantizationSection, adapter: BaseModelAdapter) -> list[Problem]:
    problems = []
    by_block = linear_schemes(section, adapter)
    if not any(by_block) and section.cache is None:
        unsuited = unsuited_in_words(section, adapter)
        what = "layers and ignore leave no linear to quantize"
        if not any(adapter.linears(block) for block in range(adapter.blocks)):
            what = f"no linear of {adapter.layout.architecture} can be (quantlib inspect says why)"
        problems.append(Problem("quantization", f"{what}; {unsuited}" if unsuited else what))
    split: dict[str, Problem] = {}
    for block, schemes in enumerate(by_block):
        for fused, parts in adapter.fused(block).items():
            named = ", ".join(dict.fromkeys(map(without_expert, parts)))
            given = {schemes.get(part): part for part in reversed(parts)}
            if named not in split and len(given) > 1:
                split[named] = _split(named, block, fused, given, section)
    return [*problems, *split.values()]


def _split(
    named: str,
    block: int,
    fused: str,
    given: Mapping[LinearScheme | None, str],
    section: QuantizationSection,
) -> Problem:
    """That rules give parts of what vLLM fuses different schemes.

    Args:
        named: The parts.
        block: Where they are.
        fused: What vLLM fuses them into.
        given: A part for each scheme; None for exact.
        section: With the rules.
    """
    what = f"splits {named} in block {block}, which vLLM fuses into {fused}"
    if not section.schemes:
        return Problem("quantization.ignore", what, "quantize all of them or none")
    shown = " and ".join(
        f"{part} ({EXACT if scheme is None else scheme.words})"
        for scheme, part in reversed(list(given.items()))
    )
    return Problem("quantization.schemes", f"{what}: {shown}", "give all of them one scheme")


def unsuited_in_words(section: QuantizationSection, adapter: BaseModelAdapter) -> str | None:
    """Which linears stay exact for their shapes; None where none do."""
    unsuited = {
        without_expert(linear): sides
        for block in range(adapter.blocks)
        for linear, sides in unsuited_linears(section, adapter, block).items()
    }
    if not unsuited:
        return None
    named = ", ".join(f"{name} ({rows} x {columns})" for name, (rows, columns) in unsuited.items())
    return (
        f"vLLM's kernels for packed weights need multiples of {KERNEL_MULTIPLE}, so that {named} "
        "and what vLLM fuses with them stay exact"
    )


def exact_in_words(adapter: BaseModelAdapter) -> str | None:
    """Which linears stay exact whatever a recipe says, and why; None where none do.

    docs/practice.md says whose experience that is.
    """
    reasons: dict[str, dict[str, None]] = {}
    for block in range(adapter.blocks):
        for linear, why in adapter.kept_exact(block).items():
            reasons.setdefault(why, {})[without_expert(linear)] = None
    if not reasons:
        return None
    named = (f"{', '.join(linears)} ({why})" for why, linears in reasons.items())
    return f"exact in any recipe: {'; '.join(named)}"


def cpu_problem(section: QuantizationSection, adapter: BaseModelAdapter) -> str | None:
    """Why vLLM cannot serve a model on a CPU as a recipe quantizes it; None where it can."""
    made_by = format_registry.get_format(resolve_format(section))
    everywhere, of_experts = used_schemes(section, adapter)
    for scheme in everywhere:
        if problem := made_by.cpu_problem(scheme.weights, scheme.activations):
            return problem
    for scheme in of_experts:
        if problem := made_by.experts_cpu_problem(scheme.weights, scheme.activations):
            return problem
    outer = outer_schemes(section, adapter)
    if "embeddings" in outer:
        return "vLLM looks quantized embeddings up with Triton, on GPUs only"
    if (head := outer.get("lm_head")) is not None:
        problem = made_by.cpu_problem(head.weights, head.activations)
        if problem is not None:
            return problem
    return cache_cpu_problem(section, adapter)


def is_emulated(section: QuantizationSection, adapter: BaseModelAdapter) -> bool:
    """Whether our worker for CPUs computes, slowly, what vLLM cannot serve on one."""
    if cache_cpu_problem(section, adapter) is not None:
        return False
    made_by = format_registry.get_format(resolve_format(section))
    of_experts = used_schemes(section, adapter)[1]
    return made_by.emulated and (made_by.experts_emulated or not of_experts)


def used_schemes(
    section: QuantizationSection, adapter: BaseModelAdapter
) -> tuple[list[LinearScheme], list[LinearScheme]]:
    """The schemes that linears of a model have, and those that experts have."""
    everywhere: dict[LinearScheme, None] = {}
    of_experts: dict[LinearScheme, None] = {}
    for schemes in linear_schemes(section, adapter):
        for linear, scheme in schemes.items():
            everywhere[scheme] = None
            if without_expert(linear) != linear:
                of_experts[scheme] = None
    return list(everywhere), list(of_experts)


def _expert_problems(section: QuantizationSection, adapter: BaseModelAdapter) -> list[Problem]:
    name = resolve_format(section)
    made_by, problems = format_registry.get_format(name), []
    for scheme in used_schemes(section, adapter)[1]:
        reason = made_by.experts_problem(scheme.weights, scheme.activations)
        if reason is not None:
            remedy = "change the scheme, or ignore the experts"
            problems.append(Problem("quantization", reason, remedy))
    reason = adapter.format_problem(name, exact_linears(section, adapter))
    if reason is not None:
        problems.append(
            Problem("quantization.format", f"{name}: {reason}", "use compressed-tensors")
        )
    return problems


def quantized_sharding(section: QuantizationSection, adapter: BaseModelAdapter) -> Sharding:
    """How the quantized model can be spread over GPUs; the original can in each of these ways."""
    names: dict[WeightScheme, set[str]] = {}
    for schemes in linear_schemes(section, adapter):
        for linear, scheme in schemes.items():
            names.setdefault(scheme.weights, set()).add(linear.rpartition(".")[2])
    if not names:
        return sharding_of(adapter.text_config, None)
    return joined([sharding_of(adapter.text_config, *each) for each in names.items()])


def sharing_problems(
    section: QuantizationSection, adapter: BaseModelAdapter, gpus: int, setting: str
) -> list[Problem]:
    """Why GPUs cannot share a model, before or after it is quantized.

    Args:
        section: How the model is quantized.
        adapter: The model's family.
        gpus: How many.
        setting: What asks for them, for messages.
    """
    sharding = quantized_sharding(section, adapter)
    problems = sharding.problems(gpus) if gpus > 1 else []
    if not problems:
        return []
    remedy = f"sizes that work: {', '.join(map(str, sharding.sizes()))}"
    others = [
        str(size)
        for size in quantizer_registry.get_quantizer(section.method).get_supported_group_sizes()
        if is_size_supported(section, with_size(section.own, size))
        and not quantized_sharding(with_sizes(section, {None: size}), adapter).problems(gpus)
    ]
    if others:
        remedy += f"; group sizes that work with {gpus}: {', '.join(others)}"
    return [
        Problem(setting, f"{gpus} GPUs cannot share the model: {what}", remedy) for what in problems
    ]
