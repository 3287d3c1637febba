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
from quantlib.recipe import Activations, QuantizationSection, Recipe, WeightScheme


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
