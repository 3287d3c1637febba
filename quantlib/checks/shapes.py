"""Whether the shapes of a model's linears go with the schemes that they get. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from quantlib.checks.linears import deciding_rule, linear_schemes, quantized_shapes
from quantlib.checks.scheme import Slot, is_size_supported, resolve_format, with_size
from quantlib.errors import Problem
from quantlib.formats import BaseFormat, format_registry
from quantlib.models.family import ModelFamily
from quantlib.models.layout import without_expert
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import quantizer_registry
from quantlib.schemes import LinearScheme

Shapes = Mapping[str, tuple[int, int]]
"""``(out_features, in_features)`` of linears, by name."""


def shape_problems(section: QuantizationSection, adapter: ModelFamily) -> Iterator[Problem]:
    """Linears whose shapes groups or blocks of their scheme do not divide as vLLM wants it."""
    yield from _group_problems(section, adapter)
    made_by = format_registry.get_format(resolve_format(section))
    said = set()
    for block, schemes in enumerate(linear_schemes(section, adapter)):
        for parts in adapter.fused(block).values():
            scheme = schemes.get(parts[0])
            shapes = {part: adapter.linear_shape(block, part) for part in parts}
            reason = None if scheme is None else unread(made_by, scheme, shapes)
            if reason is not None and reason not in said:
                said.add(reason)
                remedy = "give them another scheme, or leave them exact"
                yield Problem("quantization", reason, remedy)


def unread(made_by: BaseFormat, scheme: LinearScheme, parts: Shapes) -> str | None:
    """Why vLLM cannot read linears that it computes as one; None where it can.

    Args:
        made_by: The format that they are written in.
        scheme: Of all of them.
        parts: In the order in which they lie below one another, or of all experts of a mixture.
    """
    *before, last = parts
    if without_expert(last) != last:
        multiple = made_by.experts_multiple(scheme.weights, scheme.activations)
        for name, (rows, columns) in parts.items():
            if rows % multiple or columns % multiple:
                return (
                    f"vLLM reads experts in {scheme.name} whose sides are multiples of {multiple}, "
                    f"and {without_expert(name)} is {rows} x {columns}"
                )
        return None
    high = scheme.weights.block_rows
    for name in before:
        if high > 1 and parts[name][0] % high:
            return (
                f"vLLM computes {', '.join(parts)} as one, of which all but the last have to be "
                f"whole blocks of {high} rows in {scheme.name}, and {name} has {parts[name][0]}"
            )
    return None


def _group_problems(section: QuantizationSection, adapter: ModelFamily) -> Iterator[Problem]:
    shapes: dict[tuple[Slot, LinearScheme], dict[str, int]] = {}
    for block, linear, scheme in quantized_shapes(section, adapter):
        slot = deciding_rule(section.schemes, adapter, block, linear)
        of_scheme = shapes.setdefault((slot, scheme), {})
        of_scheme.setdefault(without_expert(linear), adapter.linear_shape(block, linear)[1])
    for (slot, scheme), inputs in shapes.items():
        size = scheme.weights.group_size
        ragged = {name: columns for name, columns in inputs.items() if size > 0 and columns % size}
        if not ragged:
            continue
        supported = quantizer_registry.get_quantizer(section.method).get_supported_group_sizes()
        is_open = slot is None or section.schemes[slot].leaves_size_open
        fitting = [
            str(other)
            for other in supported
            if is_open
            and is_size_supported(section, with_size(scheme, other))
            and (other == -1 or all(columns % other == 0 for columns in inputs.values()))
        ]
        named = ", ".join(f"{name} ({columns} columns)" for name, columns in ragged.items())
        remedies = [f"sizes that fit: {', '.join(fitting)}"] if fitting else []
        if not set(fitting) - {"-1"}:
            remedies.append(
                "name them in quantization.ignore, or choose another scheme"
                if slot is None
                else "give them another scheme, or exact, by a rule before"
            )
        where = "quantization.weights" if slot is None else f"quantization.schemes.{slot}"
        what = f"{size} does not divide {named}"
        yield Problem(f"{where}.group_size", what, ", or ".join(remedies))
