"""What of a recipe goes together: method, bits, groups, format. Imports neither torch nor numpy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

from pydantic import BaseModel, ValidationError

from quantlib.errors import Problem, UnknownNameError
from quantlib.formats import format_registry
from quantlib.grids import number_types
from quantlib.outlier_suppression import outlier_suppression_registry
from quantlib.quantization import AskedQuantization, QuantizationSection
from quantlib.quantizers import BaseQuantizer, BatchQuantizer, quantizer_registry
from quantlib.recipe import AskedRecipe, OutlierSuppressionSection, Recipe
from quantlib.schemes import ACTIVATIONS, EXACT_INPUTS, SCHEMES, LinearScheme, WeightScheme

AUTOMATIC_SIZES = (128, 64, 32)
"""What ``group_size: auto`` chooses from."""

_ANY_SCHEME = "compressed-tensors"
"""The format that holds what no other does."""

Slot = int | None
"""Where a recipe may leave the size of groups open: the number of a rule of ``schemes``, or None
for ``weights``."""


def scheme_problems(recipe: AskedRecipe) -> list[Problem]:
    """What does not go together within a recipe, whatever the model."""
    section = provisional_section(recipe.quantization)
    return [
        *_method_problems(section),
        *_format_problems(resolve_format(section), section),
        *_cache_problems(section),
        *_draft_problems(section),
        *_suppression_problems(recipe),
    ]


def _method_problems(section: QuantizationSection) -> Iterator[Problem]:
    """Schemes and options that the method does not have."""
    try:
        quantizer = quantizer_registry.get_quantizer(section.method)
    except UnknownNameError as error:
        yield from (replace(each, where="quantization.method") for each in error.problems)
        return
    for where, scheme in section.stated_schemes().items():
        yield from _unsupported(section.method, quantizer, where, scheme.weights)
    yield from _option_problems("quantization.options", quantizer.options_type, section.options)


def _format_problems(name: str, section: QuantizationSection) -> Iterator[Problem]:
    """What the format cannot hold."""
    try:
        reasons = _not_held(name, section)
    except UnknownNameError as error:
        yield from (replace(each, where="quantization.format") for each in error.problems)
        return
    for reason in reasons:
        yield Problem("quantization.format", f"{name} cannot hold this: {reason}")


def _cache_problems(section: QuantizationSection) -> Iterator[Problem]:
    if section.attention != "none" and section.cache is None:
        yield Problem(
            "quantization.attention",
            "queries are rounded where keys and values are, and kv_cache is none",
            "set quantization.kv_cache to fp8 or fp8-head, or leave it out",
        )


def _draft_problems(section: QuantizationSection) -> Iterator[Problem]:
    """Why layers that draft tokens cannot be rounded, where they are to be."""
    where, name = "quantization.draft_layers", resolve_format(section)
    if not section.draft_layers:
        return
    if name != _ANY_SCHEME:
        yield Problem(
            where,
            f"{name} is not known to be served with rounded draft layers",
            f"set quantization.format to {_ANY_SCHEME}, or leave it out",
        )
    if section.budget is not None:
        yield Problem(
            where,
            "a search has no figures of layers that draft tokens",
            "leave it out, or quantization.budget",
        )
    if section.rest is not None and section.rest.is_static:
        yield Problem(
            where,
            f"{section.rest.activations} activations need calibration, which does not run "
            "through draft layers",
            "use activations with dynamic scales, or leave it out",
        )


def _suppression_problems(recipe: AskedRecipe) -> Iterator[Problem]:
    suppression = recipe.outlier_suppression
    if not isinstance(suppression, OutlierSuppressionSection):
        return
    if recipe.quantization.budget is not None:
        yield Problem(
            "outlier_suppression",
            "a search measures blocks as the model has them, not smoothed",
            "leave it out, or quantization.budget",
        )
    try:
        suppressor = outlier_suppression_registry.get_suppressor(suppression.method)
    except UnknownNameError as error:
        yield from (replace(each, where="outlier_suppression.method") for each in error.problems)
        return
    yield from _option_problems(
        "outlier_suppression.options", suppressor.options_type, suppression.options
    )


def _unsupported(
    method: str, quantizer: type[BaseQuantizer], where: str, weights: WeightScheme
) -> Iterator[Problem]:
    """What of a scheme a method cannot produce."""
    whole = weights.type == "int"
    who = method if whole else f"the type {weights.type}"
    bits = quantizer.get_supported_bits() if whole else number_types.get(weights.type).bits
    for field, supported, by in (
        ("bits", bits, who),
        ("group_size", quantizer.get_supported_group_sizes(), method),
        ("type", quantizer.types or number_types.names(), method),
    ):
        value = getattr(weights, field)
        if value not in supported:
            known = ", ".join(map(str, supported))
            problem = f"{by} does not support {{}}{value}; supported: {known}"
            if where == "quantization":
                yield Problem(f"{where}.weights.{field}", problem.format(""))
            else:  # of a rule, which says it by the name of a scheme
                yield Problem(f"{where}.scheme", problem.format(f"{field} "))


def _not_held(name: str, section: QuantizationSection) -> list[str]:
    """Why a format cannot hold the schemes of a section, or not in one checkpoint.

    Raises:
        UnknownNameError: There is no format of that name.
    """
    written = format_registry.get_format(name)
    schemes = tuple(dict.fromkeys(section.stated_schemes().values()))
    found = (written.scheme_problem(each.weights, each.activations) for each in schemes)
    reasons = [reason for reason in dict.fromkeys(found) if reason]
    for rule in section.schemes:
        scheme = rule.linear_scheme() if "embeddings" in rule.outer else None
        if scheme is not None and (reason := written.embeddings_problem(scheme)):
            reasons.append(f"embeddings: {reason}")
    if not reasons and len(schemes) > 1 and (reason := written.mixture_problem(schemes)):
        reasons.append(reason)
    if section.cache is not None and (reason := written.cache_problem()):
        reasons.append(reason)
    return reasons


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
            if scheme["weights"]["type"] != "int"
        )
        for name, each, activations in itertools.product(
            format_registry, weights, (EXACT_INPUTS, *ACTIVATIONS)
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
    """The recipe's format.

    Where it names none, the first that can hold the scheme of: the one that is called like its
    method, compressed-tensors, and all others; for a search compressed-tensors.
    """
    if section.format is not None:
        return section.format
    if section.budget is not None:  # for any mixture of schemes
        return _ANY_SCHEME
    named_alike = (section.method,) if section.method in format_registry else ()
    for name in (*named_alike, _ANY_SCHEME, *format_registry):
        if not _not_held(name, section):
            return format_registry.get_format(name).name
    return _ANY_SCHEME


def open_sizes(section: AskedQuantization) -> dict[Slot, LinearScheme]:
    """What leaves the size of its groups open, with any size."""
    found: dict[Slot, LinearScheme] = {}
    for number, rule in enumerate(section.schemes):
        sized = rule.model_copy(update={"group_size": AUTOMATIC_SIZES[0]})
        scheme = sized.linear_scheme()
        if rule.group_size == "auto" and rule.leaves_size_open and scheme is not None:
            found[number] = scheme
    if section.weights.group_size == "auto":
        weights = section.weights.model_dump() | {"group_size": AUTOMATIC_SIZES[0]}
        found[None] = LinearScheme.model_validate(
            {"weights": weights, "activations": section.activations}
        )
    return found


def with_sizes(section: AskedQuantization, sizes: Mapping[Slot, int]) -> QuantizationSection:
    """The section with sizes of groups in the place of those that it leaves open."""
    data = section.model_dump()
    for slot, size in sizes.items():
        (data["weights"] if slot is None else data["schemes"][slot])["group_size"] = size
    return QuantizationSection.model_validate(data)


def with_size(scheme: LinearScheme, size: int) -> LinearScheme:
    """A scheme with groups of another size."""
    weights = scheme.weights.model_copy(update={"group_size": size})
    return scheme.model_copy(update={"weights": weights})


def automatic_sizes(section: AskedQuantization, scheme: LinearScheme) -> tuple[int, ...]:
    """Those of ``AUTOMATIC_SIZES`` that the method can produce and the format can hold."""
    return tuple(
        size for size in AUTOMATIC_SIZES if is_size_supported(section, with_size(scheme, size))
    )


def is_size_supported(section: AskedQuantization, scheme: LinearScheme) -> bool:
    """Whether the method can produce groups of a scheme's size, and the format can hold them."""
    try:
        quantizer = quantizer_registry.get_quantizer(section.method)
        alone = QuantizationSection(
            method=section.method,
            weights=scheme.weights,
            activations=scheme.activations,
            format=section.format,
        )
        made_by = format_registry.get_format(resolve_format(alone))
    except UnknownNameError:  # which scheme_problems reports
        return False
    return (
        scheme.weights.group_size in quantizer.get_supported_group_sizes()
        and made_by.scheme_problem(scheme.weights, scheme.activations) is None
    )


def provisional_section(section: AskedQuantization) -> QuantizationSection:
    """The section for what does not depend on the model: with any number in the place of auto."""
    sizes = {
        slot: (automatic_sizes(section, scheme) or AUTOMATIC_SIZES)[0]
        for slot, scheme in open_sizes(section).items()
    }
    return with_sizes(section, sizes)


def needs_hidden_states(asked: AskedQuantization) -> bool:
    """Whether blocks are quantized with calibration tokens running through them."""
    section = provisional_section(asked)
    quantizer = quantizer_registry.get_quantizer(section.method)(section)
    return (
        section.budget is not None
        or quantizer.needs_hessian
        or any(scheme.is_static for scheme in section.stated_schemes().values())
    )


def batches_experts(section: QuantizationSection) -> bool:
    """Whether several experts are quantized together, where they are small enough."""
    quantizer = quantizer_registry.get_quantizer(section.method)
    return issubclass(quantizer, BatchQuantizer) and needs_hidden_states(section)


def needs_calibration(recipe: AskedRecipe) -> bool:
    """Whether any text has to be run through the model before its weights can be quantized."""
    return (
        needs_hidden_states(recipe.quantization)
        or recipe.quantization.cache is not None
        or isinstance(recipe.outlier_suppression, OutlierSuppressionSection)
    )
