"""What of a recipe goes together: method, bits, groups, format. Imports neither torch nor numpy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError

from quantlib.errors import Problem, UnknownNameError
from quantlib.formats import format_registry
from quantlib.outlier_suppression import outlier_suppression_registry
from quantlib.quantizers import BaseQuantizer, BatchQuantizer, quantizer_registry
from quantlib.recipe import (
    Activations,
    AskedQuantization,
    AskedRecipe,
    QuantizationSection,
    Recipe,
    WeightScheme,
)
from quantlib.schemes import SCHEMES

AUTOMATIC_SIZES = (128, 64, 32)
"""What ``group_size: auto`` chooses from."""


def scheme_problems(recipe: AskedRecipe) -> list[Problem]:
    """What does not go together within a recipe, whatever the model."""
    section = provisional_section(recipe.quantization)
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
        weights = [
            WeightScheme(bits=bits, group_size=group_size, symmetric=symmetric)
            for bits in quantizer.get_supported_bits()
            for group_size in quantizer.get_supported_group_sizes()
            for symmetric in (True, False)
        ]
        weights += dict.fromkeys(
            WeightScheme(**scheme["weights"])
            for scheme in SCHEMES.values()
            if scheme["weights"]["type"] == "float"
        )
        for name, each, activations in itertools.product(
            format_registry, weights, get_args(Activations)
        ):
            section = QuantizationSection(
                method=method,
                weights=each,
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


def with_group_size(section: AskedQuantization, size: int) -> QuantizationSection:
    """The section with this number in the place of its group size."""
    data = section.model_dump()
    return QuantizationSection.model_validate(
        data | {"weights": data["weights"] | {"group_size": size}}
    )


def automatic_sizes(section: AskedQuantization) -> tuple[int, ...]:
    """Those of ``AUTOMATIC_SIZES`` that the method can produce and the format can hold."""
    return tuple(
        size for size in AUTOMATIC_SIZES if is_size_supported(with_group_size(section, size))
    )


def is_size_supported(section: QuantizationSection) -> bool:
    """Whether the method can produce groups of that size and the format can hold them."""
    try:
        quantizer = quantizer_registry.get_quantizer(section.method)
        made_by = format_registry.get_format(resolve_format(section))
    except UnknownNameError:  # which scheme_problems reports
        return False
    return (
        section.weights.group_size in quantizer.get_supported_group_sizes()
        and made_by.scheme_problem(section.weights, section.activations) is None
    )


def provisional_section(section: AskedQuantization) -> QuantizationSection:
    """The section for what does not depend on the model: with any number in the place of auto."""
    size = section.weights.group_size
    if not isinstance(size, int):
        size = (automatic_sizes(section) or AUTOMATIC_SIZES)[0]
    return with_group_size(section, size)


def needs_hidden_states(asked: AskedQuantization) -> bool:
    """Whether blocks are quantized with calibration tokens running through them."""
    section = provisional_section(asked)
    quantizer = quantizer_registry.get_quantizer(section.method)(section)
    return quantizer.needs_hessian or section.activations == "int8-static"


def batches_experts(section: QuantizationSection) -> bool:
    """Whether several experts are quantized together, where they are small enough."""
    quantizer = quantizer_registry.get_quantizer(section.method)
    return issubclass(quantizer, BatchQuantizer) and needs_hidden_states(section)


def needs_calibration(recipe: AskedRecipe) -> bool:
    """Whether any text has to be run through the model before its weights can be quantized."""
    return needs_hidden_states(recipe.quantization) or recipe.outlier_suppression is not None
