"""What outside of the blocks a recipe quantizes: the head and the embeddings. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from quantlib.checks.scheme import needs_hidden_states, resolve_format
from quantlib.errors import Problem
from quantlib.formats import format_registry
from quantlib.models.family import ModelFamily
from quantlib.models.patterns import matches_any
from quantlib.quantization import QuantizationSection
from quantlib.scheme_rules import OUTER_KINDS, OuterKind
from quantlib.schemes import LinearScheme

KERNEL_MULTIPLE = 32
"""vLLM's kernels for packed weights take linears whose sides are multiples of this."""

OuterSchemes = Mapping[OuterKind, LinearScheme]


def outer_rule(section: QuantizationSection, kind: OuterKind) -> int | None:
    """The number of the first rule that names the head, or the embeddings; None where none does.

    A rule for all linears is none for these.
    """
    return next((at for at, rule in enumerate(section.schemes) if kind in rule.outer), None)


def outer_schemes(section: QuantizationSection, adapter: ModelFamily) -> OuterSchemes:
    """The schemes of what is quantized of the head and the embeddings."""
    found: dict[OuterKind, LinearScheme] = {}
    for kind in OUTER_KINDS:
        number = outer_rule(section, kind)
        if number is None or matches_any(section.ignore, adapter.outer_module(kind)):
            continue
        if (scheme := section.schemes[number].linear_scheme()) is not None:
            found[kind] = scheme
    return found


def unties(section: QuantizationSection, adapter: ModelFamily) -> bool:
    """Whether a head that was the embedding becomes a tensor of its own."""
    return adapter.tied and bool(outer_schemes(section, adapter))


def calibrates_head(section: QuantizationSection, adapter: ModelFamily) -> bool:
    """Whether calibration tokens go on to the head, through all blocks."""
    return "lm_head" in outer_schemes(section, adapter) and needs_hidden_states(section)


def rewritten_outside(section: QuantizationSection, adapter: ModelFamily) -> list[str]:
    """Full names of the tensors outside of the blocks that are not what they were."""
    names = [adapter.outer_module(kind) for kind in outer_schemes(section, adapter)]
    if unties(section, adapter):
        names.append(adapter.head)
    return [f"{name}.weight" for name in dict.fromkeys(names)]


def outer_problems(section: QuantizationSection, adapter: ModelFamily) -> Iterator[Problem]:
    """Why the head or the embeddings cannot be quantized as rules want it."""
    for number, rule in enumerate(section.schemes):
        named = [adapter.outer_module(kind) for kind in rule.outer]
        if len(named) == len(rule.linears) > 0 and all(
            matches_any(section.ignore, n) for n in named
        ):
            what, remedy = "ignore names all that it is for", "leave one of the two out"
            yield Problem(f"quantization.schemes.{number}", what, remedy)
    made_by = format_registry.get_format(resolve_format(section))
    for kind, scheme in outer_schemes(section, adapter).items():
        where = f"quantization.schemes.{outer_rule(section, kind)}"
        rows, columns = adapter.outer_shape(kind)
        weights, name = scheme.weights, adapter.outer_module(kind)
        if not rows:
            yield Problem(where, f"the model has no {kind} of its own", f"leave {kind} out")
            continue
        if not adapter.outer_names(kind):
            what = f"vLLM reads no codes of {name} of {adapter.layout.architecture}"
            yield Problem(where, what, f"leave {kind} out")
        if kind == "lm_head" and (reason := made_by.head_problem(scheme, rows)):
            yield Problem(where, f"{kind}: {reason}")
        size = weights.group_size
        if size > 0 and columns % size:
            what = f"{size} does not divide {name} ({columns} columns)"
            yield Problem(f"{where}.group_size", what)
        elif columns % KERNEL_MULTIPLE:
            what = f"vLLM has kernels for multiples of {KERNEL_MULTIPLE} columns, and {name} has"
            yield Problem(where, f"{what} {columns}", f"leave {kind} out")
