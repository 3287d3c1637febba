"""Whether what a recipe names is there: in ``ignore``, and in the rules of ``schemes``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checks.kinds import kind_of
from quantlib.checks.linears import KINDS, deciding_rule, names_linear
from quantlib.checks.outer import outer_rule
from quantlib.errors import Problem, did_you_mean
from quantlib.models import BaseModelAdapter
from quantlib.models.patterns import matches
from quantlib.quantization import QuantizationSection
from quantlib.scheme_rules import OUTER_KINDS, SchemeRule

Linear = tuple[int, str]
"""A block, and the name of a linear within it."""


def pattern_problems(
    section: QuantizationSection, checkpoint: Checkpoint, adapter: BaseModelAdapter
) -> list[Problem]:
    """Patterns that name nothing of a model, and rules that decide about no linear of it."""
    linears = [
        adapter.linear_name(block, linear)
        for block in range(adapter.blocks)
        for linear in (*adapter.linears(block), *adapter.kept_exact(block))
    ]
    # What is never quantized may be named too: recipes that other tools share name the head.
    modules = [name.rpartition(".")[0] for name in checkpoint.tensors]
    names = dict.fromkeys((*linears, adapter.head, adapter.embedding, *modules))
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in linears))
    problems = [
        Problem(
            "quantization.ignore",
            f"{pattern!r} matches no linear and no other module of the model (looked at "
            f"{len(names)} names, from {linears[0]} to {adapter.head})",
            "; ".join(
                filter(
                    None,
                    [
                        did_you_mean(pattern, (*known, adapter.head, adapter.embedding)),
                        f"known: {', '.join(known)}",
                    ],
                )
            ),
        )
        for pattern in section.ignore
        if not any(matches(pattern, name) for name in names)
    ]
    return [*problems, *_rule_problems(section, adapter, known)]


def _rule_problems(
    section: QuantizationSection, adapter: BaseModelAdapter, known: Sequence[str]
) -> Iterator[Problem]:
    """Rules that name no linear, or only such as rules before them name."""
    linears = [
        (block, linear) for block in range(adapter.blocks) for linear in adapter.linears(block)
    ]
    deciding = {deciding_rule(section.schemes, adapter, *each) for each in linears}
    deciding |= {outer_rule(section, kind) for kind in OUTER_KINDS}
    for number, rule in enumerate(section.schemes):
        where = f"quantization.schemes.{number}"
        found = [
            *_unknown_blocks(where, rule, adapter),
            *_unknown_linears(where, rule, linears, adapter, known),
        ]
        yield from found
        if number in deciding or found:
            continue
        if rule.outer or any(names_linear(rule, adapter, *each) for each in linears):
            what, remedy = "rules before it name all of its linears", "leave it out, or move it up"
            yield Problem(where, what, remedy)
        else:
            what = f"its blocks have none of {', '.join(rule.linears)}"
            yield Problem(where, what, "name other blocks, or leave blocks out")


def _unknown_blocks(where: str, rule: SchemeRule, adapter: BaseModelAdapter) -> Iterator[Problem]:
    last = adapter.blocks - 1
    outside = [block for block in rule.blocks or () if not -last - 1 <= block <= last]
    if outside:
        named = ", ".join(map(str, outside))
        what = f"{named} out of range" if len(outside) > 1 else f"there is no block {named}"
        yield Problem(
            f"{where}.blocks", what, f"the model has blocks 0 to {last}, or -1 for {last}"
        )


def _unknown_linears(
    where: str,
    rule: SchemeRule,
    linears: Sequence[Linear],
    adapter: BaseModelAdapter,
    known: Sequence[str],
) -> Iterator[Problem]:
    """Names of a rule that are those of no linear; kinds, only where no other is."""
    kinds = dict.fromkeys(kind_of(linear) for _, linear in linears)
    everywhere = rule.model_copy(update={"blocks": None})
    alone = {name: everywhere.model_copy(update={"linears": (name,)}) for name in rule.linears}
    found = {
        name: any(names_linear(each, adapter, *linear) for linear in linears)
        for name, each in alone.items()
        if name not in OUTER_KINDS
    }
    for name, is_there in found.items():
        if not is_there and not (name in KINDS and any(found.values())):
            what = f"{name!r} matches no linear of the model's blocks 0 to {adapter.blocks - 1}"
            meant = "" if name in KINDS else did_you_mean(name, (*KINDS, *OUTER_KINDS, *known))
            listed = (f"kinds: {', '.join((*kinds, *OUTER_KINDS))}", f"names: {', '.join(known)}")
            yield Problem(f"{where}.linears", what, "; ".join(filter(None, [meant, *listed])))
