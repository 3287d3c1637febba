"""Which linears of a model a recipe quantizes, and what stays exact of it. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

from quantlib.checks.scheme import resolve_format
from quantlib.formats import CheckpointScheme
from quantlib.models.family import ModelFamily
from quantlib.models.layout import ANY_EXPERT, without_expert
from quantlib.recipe import QuantizationSection

KERNEL_MULTIPLE = 32
"""vLLM's kernels for packed weights take linears whose sides are multiples of this."""

_OF_EXPERT = f".{ANY_EXPERT}."


def exact_linears(section: QuantizationSection, adapter: ModelFamily) -> list[set[str]]:
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


def quantized_shapes(
    section: QuantizationSection, adapter: ModelFamily
) -> Iterator[tuple[int, str, tuple[int, int]]]:
    """The linears of all blocks that ``layers`` could name, as block, name within it, and shape.

    Blocks are alike, so that shapes can be judged where a wrong list of layers selects none.
    """
    everywhere = section.model_copy(update={"layers": None})
    for block, exact in enumerate(exact_linears(everywhere, adapter)):
        for linear in adapter.linears(block):
            if linear not in exact:
                yield block, linear, adapter.linear_shape(block, linear)


def unsuited_linears(
    section: QuantizationSection, adapter: ModelFamily, block: int
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
    section: QuantizationSection, adapter: ModelFamily
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


def rounded_draft_names(section: QuantizationSection, adapter: ModelFamily) -> tuple[str, ...]:
    """The full names of :func:`rounded_drafts`."""
    drafts = rounded_drafts(section, adapter)
    return tuple(prefix + name for prefix, names in drafts.items() for name in names)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of ``quantization.ignore`` names a linear."""
    if pattern.startswith("re:"):
        return re.search(pattern.removeprefix("re:"), name) is not None
    return name == pattern or name.endswith(f".{pattern}")


def checkpoint_scheme(section: QuantizationSection, adapter: ModelFamily) -> CheckpointScheme:
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
