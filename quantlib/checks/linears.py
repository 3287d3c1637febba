"""Which linears of a model a recipe quantizes, and what stays exact of it. Imports no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args
from weakref import WeakKeyDictionary

from quantlib.checks.kinds import kind_of
from quantlib.checks.outer import KERNEL_MULTIPLE, OuterSchemes, outer_schemes
from quantlib.checks.scheme import resolve_format
from quantlib.formats import CheckpointScheme
from quantlib.formats.base import SchemeTargets
from quantlib.models.family import ModelFamily
from quantlib.models.layout import ANY_EXPERT, without_expert
from quantlib.models.patterns import matches, matches_any
from quantlib.quantization import QuantizationSection
from quantlib.scheme_rules import OUTER_KINDS, LinearKind, SchemeRule
from quantlib.schemes import CacheScheme, LinearScheme

KINDS = get_args(LinearKind)

_OF_EXPERT = f".{ANY_EXPERT}."


_known: WeakKeyDictionary[ModelFamily, dict[str, Sequence[Mapping[str, LinearScheme]]]]
_known = WeakKeyDictionary()


def linear_schemes(
    section: QuantizationSection, adapter: ModelFamily
) -> Sequence[Mapping[str, LinearScheme]]:
    """For each block, the schemes of the linears that are quantized, by name within it.

    They are found once for a model: a plan asks for them twenty times, and with experts there may
    be a hundred thousand.
    """
    known = _known.setdefault(adapter, {})
    key = section.model_dump_json()
    if key not in known:
        known[key] = [_schemes_of_block(section, adapter, each) for each in range(adapter.blocks)]
    return known[key]


def _schemes_of_block(
    section: QuantizationSection, adapter: ModelFamily, block: int
) -> Mapping[str, LinearScheme]:
    if section.layers is not None and block not in section.layers:
        return {}
    asked = asked_schemes(section, adapter, block)
    unsuited = _unsuited(asked, adapter, block)
    return {name: scheme for name, scheme in asked.items() if name not in unsuited}


def asked_schemes(
    section: QuantizationSection, adapter: ModelFamily, block: int
) -> dict[str, LinearScheme]:
    """What ``ignore`` and the rules of ``schemes`` give the linears of a block, by name within it.

    What they leave exact is not among them.
    """
    given = [rule.linear_scheme() for rule in section.schemes]
    rest = section.own
    if not (section.ignore or section.schemes):
        return dict.fromkeys(adapter.linears(block), rest)
    found = {}
    for linear in adapter.linears(block):
        name = adapter.linear_name(block, linear)
        if matches_any(section.ignore, name):
            continue
        number = deciding_rule(section.schemes, adapter, block, linear)
        scheme = rest if number is None else given[number]
        if scheme is not None:
            found[linear] = scheme
    return found


def deciding_rule(
    rules: Sequence[SchemeRule], adapter: ModelFamily, block: int, linear: str
) -> int | None:
    """The number of the first rule that names a linear; None where none does."""
    for number, rule in enumerate(rules):
        if names_linear(rule, adapter, block, linear):
            return number
    return None


def names_linear(rule: SchemeRule, adapter: ModelFamily, block: int, linear: str) -> bool:
    """Whether a rule is for a linear."""
    if rule.blocks is not None and not {block, block - adapter.blocks}.intersection(rule.blocks):
        return False
    name = adapter.linear_name(block, linear)
    return not rule.linears or any(
        kind_of(linear) == each if each in KINDS else matches(each, name)
        for each in rule.linears
        if each not in OUTER_KINDS
    )


def exact_linears(section: QuantizationSection, adapter: ModelFamily) -> list[set[str]]:
    """For each block, the names within it of the linears that stay exact."""
    return [
        set(adapter.linears(block)).difference(schemes)
        for block, schemes in enumerate(linear_schemes(section, adapter))
    ]


def quantized_shapes(
    section: QuantizationSection, adapter: ModelFamily
) -> Iterator[tuple[int, str, LinearScheme]]:
    """The linears of all blocks that ``layers`` could name, as block, name within it, and scheme.

    Blocks are alike, so that shapes can be judged where a wrong list of layers selects none.
    """
    everywhere = section.model_copy(update={"layers": None})
    for block, schemes in enumerate(linear_schemes(everywhere, adapter)):
        for linear, scheme in schemes.items():
            yield block, linear, scheme


def unsuited_linears(
    section: QuantizationSection, adapter: ModelFamily, block: int
) -> dict[str, tuple[int, int]]:
    """Linears of a block that no kernel of vLLM takes packed, and what it fuses with them.

    They stay exact: some families have one, as the ``in_proj`` of Mamba, whose rows are of many
    kinds.

    Returns:
        ``(out_features, in_features)`` by name within the block.
    """
    return _unsuited(asked_schemes(section, adapter, block), adapter, block)


def is_unsuited(scheme: LinearScheme, shape: tuple[int, int]) -> bool:
    """Whether no kernel of vLLM's takes a linear of a shape packed as a scheme packs it."""
    packed = scheme.activations == "none" or scheme.weights.bits < 8
    return packed and any(side % KERNEL_MULTIPLE for side in shape)


def _unsuited(
    asked: Mapping[str, LinearScheme], adapter: ModelFamily, block: int
) -> dict[str, tuple[int, int]]:
    odd = {
        linear
        for linear, scheme in asked.items()
        if is_unsuited(scheme, adapter.linear_shape(block, linear))
    }
    if not odd:
        return {}
    for parts in adapter.fused(block).values():
        if not odd.isdisjoint(parts):
            odd.update(parts)
    return {
        linear: adapter.linear_shape(block, linear)
        for linear in adapter.linears(block)
        if linear in odd
    }


def rounded_drafts(
    section: QuantizationSection, adapter: ModelFamily
) -> dict[str, tuple[str, ...]]:
    """Linears of draft layers that are rounded: those that would be in a block like theirs.

    Experts stay exact.

    Returns:
        Their names within the draft block, by what the names of its tensors start with.
    """
    if not section.draft_layers or section.rest is None:
        return {}
    rounded = {}
    for prefix, block in adapter.layout.draft_blocks.items():
        exact = set(unsuited_linears(section, adapter, block))
        linears = [name for name in adapter.linears(block) if without_expert(name) == name]
        exact.update(name for name in linears if matches_any(section.ignore, prefix + name))
        for parts in adapter.fused(block).values():
            if not exact.isdisjoint(parts):
                exact.update(parts)
        if names := tuple(name for name in linears if name not in exact):
            rounded[prefix] = names
    return rounded


def rounded_draft_names(section: QuantizationSection, adapter: ModelFamily) -> tuple[str, ...]:
    """The full names of :func:`rounded_drafts`."""
    drafts = rounded_drafts(section, adapter)
    return tuple(prefix + name for prefix, names in drafts.items() for name in names)


def checkpoint_scheme(section: QuantizationSection, adapter: ModelFamily) -> CheckpointScheme:
    """What the quantized checkpoint holds, for its ``quantization_config``."""
    rounded = rounded_draft_names(section, adapter)
    # Draft layers are rounded as the rest is, and named nowhere.
    rest = section.rest if section.draft_layers else None
    by_block, outer = linear_schemes(section, adapter), outer_schemes(section, adapter)
    return scheme_of_blocks(
        resolve_format(section), by_block, adapter, rounded, rest, outer, section.cache
    )


def scheme_of_blocks(
    format_name: str,
    by_block: Sequence[Mapping[str, LinearScheme]],
    adapter: ModelFamily,
    rounded: Sequence[str] = (),
    rest: LinearScheme | None = None,
    outer: OuterSchemes | None = None,
    cache: CacheScheme | None = None,
) -> CheckpointScheme:
    """The same of linears whose schemes are known.

    Args:
        format_name: The format.
        by_block: The schemes of the linears that are quantized, by block and name within it.
        adapter: The model's family.
        rounded: Full names of linears of draft layers that are rounded.
        rest: The scheme that no name has to name; None for that of most weights.
        outer: The schemes of the head and the embeddings, where they have some.
        cache: How keys and values are kept.
    """
    outer = outer or {}
    outside = adapter.outside(rounded)
    exact = [] if "lm_head" in outer else [adapter.head]
    exact += [name for name in outside if not name.endswith(".")]
    fused: list[str] = []
    modules = [name.removesuffix(".") for name in outside if name.endswith(".")]
    for block, schemes in enumerate(by_block):
        linears = set(adapter.linears(block)).difference(schemes)
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
        format=format_name,
        schemes=_targets(by_block, adapter, rest, outer),
        exact=tuple(exact),
        exact_fused=tuple(fused),
        exact_modules=tuple(modules),
        head="lm_head" in outer,
        cache=cache,
        attention=tuple(
            dict.fromkeys(each.type for kind in adapter.layout.kinds for each in kind.attention)
        )
        if cache
        else (),
    )


def _targets(
    by_block: Sequence[Mapping[str, LinearScheme]],
    adapter: ModelFamily,
    rest: LinearScheme | None,
    outer: OuterSchemes,
) -> tuple[SchemeTargets, ...]:
    """The schemes of a model, that of what no name names first."""
    names: dict[LinearScheme, dict[str, None]] = {}
    weights: Counter[LinearScheme] = Counter()
    for block, schemes in enumerate(by_block):
        for linear, scheme in schemes.items():
            rows, columns = adapter.linear_shape(block, linear)
            weights[scheme] += rows * columns
            own = names.setdefault(scheme, {})
            own.update(dict.fromkeys(_target_names(adapter, block, linear)))
        for name, parts in adapter.fused(block).items():
            if (common := schemes.get(parts[0])) and _OF_EXPERT not in without_expert(parts[0]):
                names[common][name] = None
    if rest is None and not weights:
        return ()
    first = rest or max(weights, key=lambda scheme: weights[scheme])
    # No class that other linears are of is that of the head or the embeddings in vLLM.
    named = {first: dict[str, None]()} | {
        scheme: own for scheme, own in names.items() if scheme != first
    }
    for kind, scheme in outer.items():
        named.setdefault(scheme, {}).update(dict.fromkeys(adapter.outer_names(kind)))
    return tuple(SchemeTargets(scheme, tuple(own)) for scheme, own in named.items())


def _target_names(adapter: ModelFamily, block: int, linear: str) -> tuple[str, ...]:
    """What a config calls a linear that is in another scheme than most.

    All experts of a mixture have one: vLLM asks for those of the first, by names of its own.
    """
    general = without_expert(linear)
    if general == linear:
        return adapter.spelled(block, linear)
    module, _, part = general.partition(_OF_EXPERT)
    name = adapter.linear_name(block, module)
    asked = (other for other in adapter.spelled(block, module) if other != name)
    return (*asked, f"{name}.0.{part}", rf"re:^{re.escape(name)}(\.|$)")
