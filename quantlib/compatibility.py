"""What goes together: method, bits, groups, format and model. Imports neither torch nor numpy."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError

from quantlib.errors import Problem, UnknownNameError
from quantlib.formats import CheckpointScheme, format_registry
from quantlib.models import BaseModelAdapter
from quantlib.models.layout import ANY_EXPERT, without_expert
from quantlib.outlier_suppression import outlier_suppression_registry
from quantlib.quantizers import BaseQuantizer, BatchQuantizer, quantizer_registry
from quantlib.recipe import Activations, QuantizationSection, Recipe, WeightScheme

KERNEL_MULTIPLE = 32
"""vLLM's kernels for packed weights take linears whose sides are multiples of this."""

_OF_EXPERT = f".{ANY_EXPERT}."


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
    if section.draft_layers and name != "compressed-tensors":
        problems.append(
            Problem(
                "quantization.draft_layers",
                f"{name} is not known to be served with rounded draft layers",
                "set quantization.format to compressed-tensors, or leave it out",
            )
        )
    if section.draft_layers and section.activations == "int8-static":
        problems.append(
            Problem(
                "quantization.draft_layers",
                "int8-static needs calibration, which does not run through draft layers",
                "use int8, or leave it out",
            )
        )
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


def batches_experts(section: QuantizationSection) -> bool:
    """Whether several experts are quantized together, where they are small enough."""
    quantizer = quantizer_registry.get_quantizer(section.method)
    return issubclass(quantizer, BatchQuantizer) and needs_hidden_states(section)


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
                    matches(pattern, adapter.linear_name(block, linear))
                    for pattern in section.ignore
                )
            }.union(unsuited_linears(section, adapter, block))
        )
    return exact


def unsuited_linears(
    section: QuantizationSection, adapter: BaseModelAdapter, block: int
) -> dict[str, tuple[int, int]]:
    """Linears of a block that no kernel of vLLM takes packed, and what it fuses with them.

    They stay exact: some families have one, as the ``in_proj`` of Mamba, whose rows are of many
    kinds.

    Returns:
        ``(out_features, in_features)`` by name within the block.
    """
    if section.activations != "none":
        return {}
    shapes = {linear: adapter.linear_shape(block, linear) for linear in adapter.linears(block)}
    odd = {name for name, sides in shapes.items() if any(side % KERNEL_MULTIPLE for side in sides)}
    if odd:
        for parts in adapter.fused(block).values():
            if not odd.isdisjoint(parts):
                odd.update(parts)
    return {name: sides for name, sides in shapes.items() if name in odd}


def rounded_drafts(
    section: QuantizationSection, adapter: BaseModelAdapter
) -> dict[str, tuple[str, ...]]:
    """Linears of draft layers that are rounded: those that would be in a block like theirs.

    Experts stay exact.

    Returns:
        Their names within the draft block, by what the names of its tensors start with.
    """
    if not section.draft_layers:
        return {}
    rounded = {}
    for prefix, block in adapter.layout.draft_blocks.items():
        exact = set(unsuited_linears(section, adapter, block))
        linears = [name for name in adapter.linears(block) if without_expert(name) == name]
        for pattern in section.ignore:
            exact.update(name for name in linears if matches(pattern, prefix + name))
        for parts in adapter.fused(block).values():
            if not exact.isdisjoint(parts):
                exact.update(parts)
        if names := tuple(name for name in linears if name not in exact):
            rounded[prefix] = names
    return rounded


def rounded_draft_names(section: QuantizationSection, adapter: BaseModelAdapter) -> tuple[str, ...]:
    """The full names of :func:`rounded_drafts`."""
    drafts = rounded_drafts(section, adapter)
    return tuple(prefix + name for prefix, names in drafts.items() for name in names)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of ``quantization.ignore`` names a linear."""
    if pattern.startswith("re:"):
        return re.search(pattern.removeprefix("re:"), name) is not None
    return name == pattern or name.endswith(f".{pattern}")


def checkpoint_scheme(section: QuantizationSection, adapter: BaseModelAdapter) -> CheckpointScheme:
    """What the quantized checkpoint holds, for its ``quantization_config``."""
    outside = adapter.outside(rounded_draft_names(section, adapter))
    exact = [adapter.head, *(name for name in outside if not name.endswith("."))]
    fused: list[str] = []
    modules = [name.removesuffix(".") for name in outside if name.endswith(".")]
    for block, linears in enumerate(exact_linears(section, adapter)):
        kept = adapter.kept_exact(block)
        within = {name for name in kept if _OF_EXPERT in name}
        for name, parts in adapter.fused(block).items():
            if not linears.issuperset(parts):
                continue
            if _OF_EXPERT in without_expert(parts[0]):
                within.update(parts)
            else:
                fused.append(name)
        mixtures = dict.fromkeys(without_expert(name).partition(_OF_EXPERT)[0] for name in within)
        for name in mixtures:
            modules.append(adapter.linear_name(block, name))
            exact += [
                other
                for other in adapter.spelled(block, name)
                if not f"{other}.".startswith(f"{modules[-1]}.")
            ]
        alone = [name for name in adapter.linears(block) if name in linears]
        exact += [
            name
            for linear in (*alone, *kept)
            if linear not in within
            for name in adapter.spelled(block, linear)
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
