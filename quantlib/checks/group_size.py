"""Settles what a recipe leaves to the model: group sizes above all. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantlib.checks.linears import deciding_rule, quantized_shapes
from quantlib.checks.model import quantized_sharding
from quantlib.checks.outer import outer_rule, outer_schemes
from quantlib.checks.scheme import (
    Slot,
    automatic_sizes,
    open_sizes,
    provisional_section,
    with_sizes,
)
from quantlib.checks.suppression import settled_suppression
from quantlib.models.adapter import BaseModelAdapter
from quantlib.quantization import QuantizationSection
from quantlib.recipe import AskedRecipe, OutlierSuppressionSection, Recipe


@dataclass(frozen=True)
class Settled:
    """A recipe on a model.

    Attributes:
        recipe: What is done: what was asked for, with each group size as a number.
        said: Which sizes were chosen, and why, as a line; empty where the recipe gives numbers, and
            where none fits.
    """

    recipe: Recipe
    said: str = ""

    @property
    def size(self) -> int:
        """The group size."""
        return self.recipe.quantization.weights.group_size


def settle(asked: AskedRecipe, adapter: BaseModelAdapter) -> Settled:
    """Chooses what a recipe leaves open: group sizes, and whether outliers are suppressed.

    Each size, of its weights and of each rule, is the largest of ``AUTOMATIC_SIZES`` that the
    method can produce, the format can hold, and that divides the input of every linear that it is
    for, on each of the GPUs that will share the model. Where there is none it is the smallest,
    which :func:`quantlib.checks.model.model_problems` then refuses with everything else.

    Args:
        asked: A valid recipe.
        adapter: The model's family.
    """
    section, lines = provisional_section(asked.quantization), []
    slots = open_sizes(asked.quantization)
    columns = _columns(section, adapter) if slots else {}
    for slot, scheme in slots.items():
        sizes, own = automatic_sizes(section, scheme), columns.get(slot, {})
        obstacle = ""
        for size in sizes:
            section = with_sizes(section, {slot: size})
            found = _obstacle(section, size, own, adapter, asked.serving.tensor_parallel_size)
            if not found:
                if own:
                    lines.append(_line(section, slot, size, sizes, obstacle))
                break
            obstacle = found
    suppression = settled_suppression(asked, adapter)
    return Settled(settled_as(asked, section, suppression), "; ".join(lines))


def why(recipe: Recipe, adapter: BaseModelAdapter) -> str:
    """Why groups are of their sizes, as :class:`Settled` says it.

    Args:
        recipe: What was done. Where it was asked for by numbers, those may be the same ones.
        adapter: The model's family.

    Returns:
        A line; empty where ``auto`` would have chosen other sizes.
    """
    section = recipe.quantization
    data = recipe.model_dump()
    sizes = automatic_sizes(section, section.own)
    if section.weights.block_rows == 1 and section.weights.group_size in sizes:
        data["quantization"]["weights"]["group_size"] = "auto"
    for rule, given in zip(section.schemes, data["quantization"]["schemes"], strict=True):
        if rule.leaves_size_open:
            given["group_size"] = "auto"
    settled = settle(AskedRecipe.model_validate(data), adapter)
    return settled.said if settled.recipe == recipe else ""


def settled_as(
    asked: AskedRecipe,
    section: QuantizationSection,
    suppression: OutlierSuppressionSection | None,
) -> Recipe:
    """What is asked for, with sections that are settled."""
    settled = {
        "quantization": section.model_dump(),
        "outlier_suppression": None if suppression is None else suppression.model_dump(),
    }
    return Recipe.model_validate(asked.model_dump() | settled)


def _columns(section: QuantizationSection, adapter: BaseModelAdapter) -> dict[Slot, dict[int, str]]:
    """The inputs of linears by what gives their groups a size, each with one that has so many."""
    found: dict[Slot, dict[int, str]] = {}
    for block, linear, _ in quantized_shapes(section, adapter):
        slot = deciding_rule(section.schemes, adapter, block, linear)
        inputs = adapter.linear_shape(block, linear)[1]
        found.setdefault(slot, {}).setdefault(inputs, adapter.linear_name(block, linear))
    for kind in outer_schemes(section, adapter):
        own = found.setdefault(outer_rule(section, kind), {})
        own.setdefault(adapter.outer_shape(kind)[1], adapter.outer_module(kind))
    return found


def _obstacle(
    section: QuantizationSection,
    size: int,
    columns: Mapping[int, str],
    adapter: BaseModelAdapter,
    gpus: int,
) -> str:
    """Why groups of a size do not fit; empty where they do."""
    for inputs, linear in columns.items():
        if inputs % size:
            return f"{size} does not divide {linear} ({inputs})"
    for divided in quantized_sharding(section, adapter).inputs if gpus > 1 else ():
        share, rest = divmod(divided.channels, gpus)
        # What cannot be shared at all, or not in words of codes, is not for the groups to mend.
        if not rest and divided.multiple % size == 0 and share % size:
            return (
                f"{size} does not divide the {share} inputs of {divided.linear} that each of "
                f"{gpus} GPUs gets"
            )
    return ""


def _line(
    section: QuantizationSection, slot: Slot, size: int, sizes: tuple[int, ...], obstacle: str
) -> str:
    whose = "" if slot is None else f" of {section.schemes[slot].scheme} (rule {slot + 1})"
    every = "every linear's input" if not section.schemes else "the inputs of all its linears"
    if not obstacle:
        return f"group size {size}{whose}: it divides {every}"
    among = ", ".join(map(str, sizes))
    return f"group size {size}{whose}: the largest of {among} that divides {every}; {obstacle}"
