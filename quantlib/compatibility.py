"""What goes together: method, bits, groups, format and model. Imports neither torch nor numpy."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError

from quantlib.checkpoint.checkpoint import FLOAT_DTYPES, Checkpoint
from quantlib.errors import Problem, UnknownNameError
from quantlib.formats import CheckpointScheme, format_registry
from quantlib.models import BaseModelAdapter
from quantlib.models.base import without_expert
from quantlib.outlier_suppression import outlier_suppression_registry
from quantlib.quantizers import BaseQuantizer, quantizer_registry
from quantlib.recipe import Activations, QuantizationSection, Recipe, WeightScheme
from quantlib.serving.tensor_parallel import sharding_of

_KERNEL_MULTIPLE = 32
"""vLLM's kernels for packed weights take linears whose sides are multiples of this."""


def scheme_problems(recipe: Recipe) -> list[Problem]:
    """What does not go together within a recipe, whatever the model."""
    section = recipe.quantization
    problems: list[Problem] = []
    try:
        quantizer = quantizer_registry.get_quantizer(section.method)
    except UnknownNameError as error:
        problems.append(Problem("quantization.method", error.problems[0].what))
    else:
        for field, supported in (
            ("bits", quantizer.get_supported_bits()),
            ("group_size", quantizer.get_supported_group_sizes()),
        ):
            value = getattr(section.weights, field)
            if value not in supported:
                known = ", ".join(map(str, supported))
                problems.append(
                    Problem(
                        f"quantization.weights.{field}",
                        f"{section.method} does not support {value}; supported: {known}",
                    )
                )
        if section.weights.type not in quantizer.types:
            known = ", ".join(quantizer.types)
            problems.append(
                Problem(
                    "quantization.weights.type",
                    f"{section.method} does not support {section.weights.type}; supported: {known}",
                )
            )
        problems += _option_problems(
            "quantization.options", quantizer.options_type, section.options
        )
    name = resolve_format(section)
    try:
        reason = format_registry.get_format(name).scheme_problem(
            section.weights, section.activations
        )
    except UnknownNameError as error:
        problems.append(Problem("quantization.format", error.problems[0].what))
    else:
        if reason:
            problems.append(Problem("quantization.format", f"{name} cannot hold this: {reason}"))
    if recipe.outlier_suppression is not None:
        try:
            suppressor = outlier_suppression_registry.get_suppressor(
                recipe.outlier_suppression.method
            )
        except UnknownNameError as error:
            problems.append(Problem("outlier_suppression.method", error.problems[0].what))
        else:
            problems += _option_problems(
                "outlier_suppression.options",
                suppressor.options_type,
                recipe.outlier_suppression.options,
            )
    return problems


def schemes() -> Iterator[QuantizationSection]:
    """Every combination of method, format, weights and activations that a recipe may ask for."""
    for method in quantizer_registry:
        quantizer = quantizer_registry.get_quantizer(method)
        for name, kind, bits, group_size, symmetric, activations in itertools.product(
            format_registry,
            quantizer.types,
            quantizer.get_supported_bits(),
            quantizer.get_supported_group_sizes(),
            (True, False),
            get_args(Activations),
        ):
            weights = WeightScheme(type=kind, bits=bits, group_size=group_size, symmetric=symmetric)
            section = QuantizationSection(
                method=method,
                weights=weights,
                activations=activations,
                format=format_registry.get_format(name).name,
            )
            if not scheme_problems(Recipe(quantization=section)):
                yield section


def _option_problems(
    where: str, options: type[BaseModel], given: Mapping[str, object]
) -> list[Problem]:
    try:
        options.model_validate(given)
    except ValidationError as error:
        known = ", ".join(options.model_fields) or "none"
        return [
            Problem(
                ".".join([where, *map(str, fault["loc"])]),
                f"unknown option; known: {known}"
                if fault["type"] == "extra_forbidden"
                else f"{fault['msg'].removeprefix('Value error, ')} (given: {fault['input']!r})",
            )
            for fault in error.errors()
        ]
    return []


def resolve_format(section: QuantizationSection) -> str:
    """The recipe's format; where it names none, the first of its method's that holds the scheme."""
    if section.format is not None:
        return section.format
    try:
        formats = quantizer_registry.get_quantizer(section.method).formats
    except UnknownNameError:  # which scheme_problems reports
        formats = BaseQuantizer.formats
    for name in formats:
        candidate = format_registry.get_format(name)
        if not candidate.scheme_problem(section.weights, section.activations):
            return name
    return formats[-1]


def needs_hidden_states(section: QuantizationSection) -> bool:
    """Whether blocks are quantized with calibration tokens running through them."""
    quantizer = quantizer_registry.get_quantizer(section.method)(section)
    return quantizer.needs_hessian or section.activations == "int8-static"


def needs_calibration(recipe: Recipe) -> bool:
    """Whether any text has to be run through the model before its weights can be quantized."""
    return needs_hidden_states(recipe.quantization) or recipe.outlier_suppression is not None


def exact_linears(section: QuantizationSection, adapter: BaseModelAdapter) -> list[set[str]]:
    """For each block, the names within it of the linears that stay exact."""
    exact = []
    for block in range(adapter.blocks):
        linears = adapter.linears(block)
        if section.layers is not None and block not in section.layers:
            exact.append(set(linears))
            continue
        exact.append(
            {
                linear
                for linear in linears
                if any(
                    _matches(pattern, adapter.linear_name(block, linear))
                    for pattern in section.ignore
                )
            }
        )
    return exact


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.search(pattern.removeprefix("re:"), name) is not None
    return name == pattern or name.endswith(f".{pattern}")


def checkpoint_scheme(section: QuantizationSection, adapter: BaseModelAdapter) -> CheckpointScheme:
    """What the quantized checkpoint holds, for its ``quantization_config``."""
    exact = [adapter.head]
    fused: list[str] = []
    modules: list[str] = []
    for block, linears in enumerate(exact_linears(section, adapter)):
        within: set[str] = set()
        for name, parts in adapter.fused(block).items():
            if not linears.issuperset(parts):
                continue
            if all(part.startswith(f"{name}.") for part in parts):
                within.update(parts)
                modules.append(adapter.linear_name(block, name))
            else:
                fused.append(adapter.linear_name(block, name))
        exact += [
            adapter.linear_name(block, name)
            for name in (*adapter.linears(block), *adapter.routers(block))
            if name in adapter.routers(block) or name in linears - within
        ]
    return CheckpointScheme(
        format=resolve_format(section),
        method=section.method,
        weights=section.weights,
        activations=section.activations,
        exact=tuple(exact),
        exact_fused=tuple(fused),
        exact_modules=tuple(modules),
    )


def model_problems(
    recipe: Recipe, checkpoint: Checkpoint, adapter: BaseModelAdapter
) -> list[Problem]:
    """What of a recipe does not go with a model.

    Args:
        recipe: A valid recipe.
        checkpoint: The model's headers.
        adapter: The model's family.
    """
    if "quantization_config" in checkpoint.config:
        return [
            Problem(
                "config.json: quantization_config",
                "the checkpoint is quantized already",
                "give the original",
            )
        ]
    problems = adapter.problems(checkpoint)
    problems += [
        Problem(name, f"has dtype {info.dtype}", f"supported: {', '.join(FLOAT_DTYPES)}")
        for name, info in checkpoint.tensors.items()
        if info.dtype not in FLOAT_DTYPES
    ]
    if problems:
        return problems
    problems = _pattern_problems(recipe.quantization, adapter)
    problems += _layer_problems(recipe.quantization, adapter)
    if not problems:
        problems = _fusion_problems(recipe.quantization, adapter)
    problems += _expert_problems(recipe.quantization, adapter)
    problems += _shape_problems(recipe.quantization, checkpoint, adapter)
    if recipe.outlier_suppression is not None:
        suppression = recipe.outlier_suppression
        suppressor = outlier_suppression_registry.get_suppressor(suppression.method)
        problems += suppressor(suppression.options).problems(adapter)
    problems += _serving_problems(recipe, adapter)
    for field, section in (
        ("calibration", recipe.calibration if needs_calibration(recipe) else None),
        ("validation", recipe.validation),
    ):
        if section is not None and section.sequence_length > adapter.max_sequence_length:
            problems.append(
                Problem(
                    f"{field}.sequence_length",
                    f"{section.sequence_length} is above the model's {adapter.max_sequence_length}",
                )
            )
    return problems


def _pattern_problems(section: QuantizationSection, adapter: BaseModelAdapter) -> list[Problem]:
    names = [
        adapter.linear_name(block, linear)
        for block in range(adapter.blocks)
        for linear in (*adapter.linears(block), *adapter.routers(block))
    ]
    problems = []
    for pattern in section.ignore:
        try:
            found = pattern == adapter.head or any(_matches(pattern, name) for name in names)
        except re.error as error:
            problems.append(
                Problem("quantization.ignore", f"{pattern!r} is no regular expression: {error}")
            )
            continue
        if not found:
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
            problems.append(
                Problem("quantization.ignore", f"{pattern!r} matches no linear", f"known: {known}")
            )
    return problems


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


def _fusion_problems(section: QuantizationSection, adapter: BaseModelAdapter) -> list[Problem]:
    problems = []
    exact = exact_linears(section, adapter)
    if all(linears.issuperset(adapter.linears(block)) for block, linears in enumerate(exact)):
        problems.append(Problem("quantization", "layers and ignore leave no linear to quantize"))
    split: dict[str, Problem] = {}
    for block, linears in enumerate(exact):
        for fused, parts in adapter.fused(block).items():
            if fused not in split and 0 < len(linears & set(parts)) < len(parts):
                named = ", ".join(dict.fromkeys(map(without_expert, parts)))
                split[fused] = Problem(
                    "quantization.ignore",
                    f"splits {named} in block {block}, which vLLM fuses into {fused}",
                    "quantize all of them or none",
                )
    return [*problems, *split.values()]


def quantizes_experts(section: QuantizationSection, adapter: BaseModelAdapter) -> bool:
    """Whether a recipe quantizes the linears of experts."""
    return any(
        group.expert is not None and not exact.issuperset(group.linears)
        for block, exact in enumerate(exact_linears(section, adapter))
        for group in adapter.groups(block)
    )


def cpu_problem(section: QuantizationSection, adapter: BaseModelAdapter) -> str | None:
    """Why vLLM cannot serve a model on a CPU as a recipe quantizes it; None where it can."""
    scheme = (section.weights, section.activations)
    made_by = format_registry.get_format(resolve_format(section))
    problem = made_by.cpu_problem(*scheme)
    if problem is None and quantizes_experts(section, adapter):
        problem = made_by.experts_cpu_problem(*scheme)
    return problem


def _expert_problems(section: QuantizationSection, adapter: BaseModelAdapter) -> list[Problem]:
    name = resolve_format(section)
    problems = []
    reason = format_registry.get_format(name).experts_problem(section.weights, section.activations)
    if reason is not None and quantizes_experts(section, adapter):
        problems.append(Problem("quantization", reason, "change the scheme, or ignore the experts"))
    reason = adapter.format_problem(name, exact_linears(section, adapter))
    if reason is not None:
        remedy = "use compressed-tensors, or ignore gate_proj and up_proj"
        problems.append(Problem("quantization.format", f"{name}: {reason}", remedy))
    return problems


def _serving_problems(recipe: Recipe, adapter: BaseModelAdapter) -> list[Problem]:
    exact = exact_linears(recipe.quantization, adapter)
    quantized = {
        linear.rpartition(".")[2]
        for block, names in enumerate(exact)
        for linear in set(adapter.linears(block)) - names
    }
    sharding = sharding_of(adapter.config, recipe.quantization.weights, quantized)
    size = recipe.serving.tensor_parallel_size
    return [
        Problem(
            "serving.tensor_parallel_size",
            f"{size} GPUs cannot share the model: {what}",
            f"sizes that work: {', '.join(map(str, sharding.sizes()))}",
        )
        for what in (sharding.problems(size) if size > 1 else ())
    ]


def _shape_problems(
    section: QuantizationSection, checkpoint: Checkpoint, adapter: BaseModelAdapter
) -> list[Problem]:
    shapes: dict[str, tuple[int, int]] = {}
    # Blocks are alike, so that shapes can be judged where a wrong list of layers selects none.
    everywhere = section.model_copy(update={"layers": None})
    for block, exact in enumerate(exact_linears(everywhere, adapter)):
        for linear in adapter.linears(block):
            if linear not in exact:
                shape = adapter.linear_shape(checkpoint, block, linear)
                shapes.setdefault(without_expert(linear), shape)
    problems = []
    size = section.weights.group_size
    ragged = {name: columns for name, (_, columns) in shapes.items() if size > 0 and columns % size}
    if ragged:
        supported = quantizer_registry.get_quantizer(section.method).get_supported_group_sizes()
        fitting = [
            str(other)
            for other in supported
            if other == -1 or all(columns % other == 0 for _, columns in shapes.values())
        ]
        named = ", ".join(f"{name} ({columns} columns)" for name, columns in ragged.items())
        problems.append(
            Problem(
                "quantization.weights.group_size",
                f"{size} does not divide {named}",
                f"sizes that fit: {', '.join(fitting)}",
            )
        )
    if section.activations == "none":
        odd = [
            f"{name} ({rows} x {columns})"
            for name, (rows, columns) in shapes.items()
            if rows % _KERNEL_MULTIPLE or columns % _KERNEL_MULTIPLE
        ]
        if odd:
            problems.append(
                Problem(
                    "quantization",
                    f"{', '.join(odd)}: vLLM's kernels need multiples of {_KERNEL_MULTIPLE}",
                    "name them under quantization.ignore",
                )
            )
    return problems
