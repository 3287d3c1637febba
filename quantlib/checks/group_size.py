"""Settles ``group_size: auto``, once the shapes of a model are known. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantlib.checks.linears import quantized_shapes
from quantlib.checks.model import quantized_sharding
from quantlib.checks.scheme import automatic_sizes, with_group_size
from quantlib.models.adapter import BaseModelAdapter
from quantlib.recipe import AskedRecipe, QuantizationSection, Recipe


@dataclass(frozen=True)
class Settled:
    """A recipe on a model.

    Attributes:
        recipe: What is done: what was asked for, with the group size as a number.
        said: Which size was chosen, and why, as a line; empty where the recipe gives a number, and
            where none fits.
    """

    recipe: Recipe
    said: str = ""

    @property
    def size(self) -> int:
        """The group size."""
        return self.recipe.quantization.weights.group_size


def settle(asked: AskedRecipe, adapter: BaseModelAdapter) -> Settled:
    """Chooses the group size that a recipe leaves open.

    It is the largest of ``AUTOMATIC_SIZES`` that the method can produce, the format can hold, and
    that divides the input of every linear to be quantized, on each of the GPUs that will share the
    model. Where there is none it is the smallest, which
    :func:`quantlib.checks.model.model_problems` then refuses with everything else.

    Args:
        asked: A valid recipe.
        adapter: The model's family.
    """
    size = asked.quantization.weights.group_size
    if isinstance(size, int):
        return Settled(settled_at(asked, size))
    chosen, said = _choice(asked, adapter)
    return Settled(settled_at(asked, chosen), said)


def why(recipe: Recipe, adapter: BaseModelAdapter) -> str:
    """Why groups are of their size, as :class:`Settled` says it.

    Args:
        recipe: What was done. Where it was asked for by a number, that may be the same one.
        adapter: The model's family.

    Returns:
        A line; empty where ``auto`` would have chosen another size.
    """
    weights = recipe.quantization.weights
    if weights.group_size not in automatic_sizes(recipe.quantization) or weights.block_rows > 1:
        return ""
    chosen, said = _choice(recipe, adapter)
    return said if chosen == weights.group_size else ""


def _choice(asked: AskedRecipe, adapter: BaseModelAdapter) -> tuple[int, str]:
    """The size that ``auto`` is on a model, and why; the smallest, without a word, if none fits."""
    section = asked.quantization
    sizes = automatic_sizes(section)
    columns: dict[int, str] = {}
    for block, linear, (_, inputs) in quantized_shapes(with_group_size(section, sizes[0]), adapter):
        columns.setdefault(inputs, adapter.linear_name(block, linear))
    gpus, obstacle = asked.serving.tensor_parallel_size, ""
    for size in sizes:
        found = _obstacle(with_group_size(section, size), columns, adapter, gpus)
        if not found:
            return size, _line(size, sizes, obstacle)
        obstacle = found
    return sizes[-1], ""


def settled_at(asked: AskedRecipe, size: int) -> Recipe:
    """What is asked for, with groups of this size."""
    section = with_group_size(asked.quantization, size)
    return Recipe.model_validate(asked.model_dump() | {"quantization": section.model_dump()})


def _obstacle(
    section: QuantizationSection, columns: Mapping[int, str], adapter: BaseModelAdapter, gpus: int
) -> str:
    """Why groups of a size do not fit; empty where they do."""
    size = section.weights.group_size
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


def _line(size: int, sizes: tuple[int, ...], obstacle: str) -> str:
    if not obstacle:
        return f"group size {size}: it divides every linear's input"
    among = ", ".join(map(str, sizes))
    return (
        f"group size {size}: the largest of {among} that divides every linear's input; {obstacle}"
    )
