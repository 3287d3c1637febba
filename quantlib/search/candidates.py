"""What linears may become in a search, and which linears it decides together. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import DTYPE_BYTES
from quantlib.checks.linears import deciding_rule, is_unsuited, linear_schemes
from quantlib.checks.model import sharing_problems
from quantlib.checks.scheme import AUTOMATIC_SIZES, is_size_supported, resolve_format
from quantlib.checks.shapes import unread
from quantlib.formats import format_registry
from quantlib.formats.stored_bytes import stored_bytes
from quantlib.models import BaseModelAdapter
from quantlib.models.layout import ANY_EXPERT, without_expert
from quantlib.models.patterns import matches_any
from quantlib.quantization import QuantizationSection
from quantlib.recipe import AskedRecipe, Recipe
from quantlib.scheme_rules import EXACT, SchemeRule
from quantlib.schemes import LinearScheme


@dataclass(frozen=True)
class Candidate:
    """One way to represent linears.

    Attributes:
        name: Its words: ``W4A16 in groups of 64``, or exact.
        rule: What a recipe says of it, for all linears.
        scheme: Of weights and activations; None for exact.
    """

    name: str
    rule: SchemeRule
    scheme: LinearScheme | None

    @classmethod
    def of(cls, rule: SchemeRule) -> Candidate:
        """That of a rule whose size of groups is settled."""
        scheme = rule.linear_scheme()
        return cls(EXACT if scheme is None else scheme.words, rule, scheme)


@dataclass(frozen=True)
class Unit:
    """Linears that get one scheme: what vLLM computes as one, or one linear.

    Attributes:
        block: Where they are.
        name: What messages call them, within the block: ``self_attn.qkv_proj``, ``mlp.experts``.
        linears: Their names within the block.
        weights: How many weights they have.
        bytes: What they take, by the candidates that they can be.
    """

    block: int
    name: str
    linears: tuple[str, ...]
    weights: int
    bytes: Mapping[str, int]


@dataclass(frozen=True)
class Space:
    """What a search chooses from.

    Attributes:
        candidates: By name, as the recipe lists them.
        units: What each is chosen for.
        fixed_bytes: What all other tensors of the checkpoint take.
        fixed_linear_bytes: What of it linears of the blocks take, whose schemes are given.
        weights: Weights of all linears of the blocks, given ones among them.
    """

    candidates: Mapping[str, Candidate]
    units: tuple[Unit, ...]
    fixed_bytes: int
    fixed_linear_bytes: int
    weights: int

    def bits(self, unit_bytes: int) -> float:
        """Bits per weight of the blocks' linears, where the units take so many bytes."""
        return 8 * (self.fixed_linear_bytes + unit_bytes) / self.weights


def settled_candidates(recipe: AskedRecipe, adapter: BaseModelAdapter) -> dict[str, Candidate]:
    """What a recipe lets a search choose from, an open size of groups as each size that goes.

    Args:
        recipe: With a budget.
        adapter: The model's family.
    """
    found = (
        Candidate.of(sized)
        for rule in recipe.quantization.candidates
        for sized in _sized(rule, recipe, adapter)
    )
    return {candidate.name: candidate for candidate in found}


def _sized(
    rule: SchemeRule, recipe: AskedRecipe, adapter: BaseModelAdapter
) -> Iterator[SchemeRule]:
    if rule.group_size != "auto" or not rule.leaves_size_open:
        yield rule
        return
    for size in AUTOMATIC_SIZES:
        sized = rule.model_copy(update={"group_size": size})
        scheme = sized.linear_scheme()
        assert scheme is not None
        if is_size_supported(recipe.quantization, scheme) and _shares(recipe, scheme, adapter):
            yield sized


def _shares(recipe: AskedRecipe, scheme: LinearScheme, adapter: BaseModelAdapter) -> bool:
    """Whether the GPUs that will share a model can share it in a scheme."""
    gpus = recipe.serving.tensor_parallel_size
    if gpus == 1:
        return True
    alone = QuantizationSection(
        method=recipe.quantization.method,
        weights=scheme.weights,
        activations=scheme.activations,
        ignore=recipe.quantization.ignore,
        layers=recipe.quantization.layers,
    )
    return not sharing_problems(alone, adapter, gpus, "")


def search_space(recipe: Recipe, checkpoint: Checkpoint, adapter: BaseModelAdapter) -> Space:
    """What a search of a recipe with a budget chooses from; reads headers.

    Linears that ``ignore``, ``layers`` or a rule of ``schemes`` name are not searched.
    """
    section = recipe.quantization
    candidates = settled_candidates(recipe, adapter)
    stored = DTYPE_BYTES[adapter.stored_dtype(checkpoint)]
    given = linear_schemes(section, adapter)
    units: list[Unit] = []
    total = sum(info.bytes for info in checkpoint.tensors.values())
    weights = fixed = exact_bytes = 0
    for block in range(adapter.blocks):
        searched = set(_searched(section, adapter, block))
        for linear in adapter.linears(block):
            rows, columns = adapter.linear_shape(block, linear)
            weights += rows * columns
            exact_bytes += rows * columns * stored
            if linear not in searched:
                scheme = given[block].get(linear)
                fixed += _bytes(scheme, (rows, columns), stored)
        for name, linears in _sets(adapter, block, searched).items():
            shapes = [adapter.linear_shape(block, linear) for linear in linears]
            units.append(
                Unit(
                    block=block,
                    name=name,
                    linears=linears,
                    weights=sum(rows * columns for rows, columns in shapes),
                    bytes={
                        each.name: sum(_bytes(each.scheme, shape, stored) for shape in shapes)
                        for each in candidates.values()
                        if _goes(each.scheme, section, linears, shapes)
                    },
                )
            )
    return Space(candidates, tuple(units), total - exact_bytes + fixed, fixed, weights)


def _searched(section: QuantizationSection, adapter: BaseModelAdapter, block: int) -> Iterator[str]:
    """The linears of a block that neither ``ignore``, ``layers`` nor a rule names."""
    if section.layers is not None and block not in section.layers:
        return
    for linear in adapter.linears(block):
        name = adapter.linear_name(block, linear)
        if matches_any(section.ignore, name):
            continue
        if deciding_rule(section.schemes, adapter, block, linear) is None:
            yield linear


def _sets(adapter: BaseModelAdapter, block: int, searched: set[str]) -> dict[str, tuple[str, ...]]:
    """The linears of a block that are searched, those that get one scheme together, by name."""
    found: dict[str, tuple[str, ...]] = {}
    together: set[str] = set()
    for full, parts in adapter.fused(block).items():
        if searched.issuperset(parts):
            name = full.removeprefix(adapter.block_prefix(block))
            if without_expert(parts[0]) != parts[0]:
                name = without_expert(parts[0]).partition(f".{ANY_EXPERT}.")[0]
            found[name] = parts
            together.update(parts)
    found |= {name: (name,) for name in adapter.linears(block) if name in searched - together}
    order = {linear: number for number, linear in enumerate(adapter.linears(block))}
    return dict(sorted(found.items(), key=lambda item: order[item[1][0]]))


def _bytes(scheme: LinearScheme | None, shape: tuple[int, int], stored: int) -> int:
    rows, columns = shape
    if scheme is None:
        return rows * columns * stored
    return stored_bytes(scheme.weights, rows, columns)


def _goes(
    scheme: LinearScheme | None,
    section: QuantizationSection,
    linears: Sequence[str],
    shapes: Sequence[tuple[int, int]],
) -> bool:
    """Whether linears can be in a scheme."""
    if scheme is None:
        return True
    size = scheme.weights.group_size
    if size > 0 and any(columns % size for _, columns in shapes):
        return False
    if any(is_unsuited(scheme, shape) for shape in shapes):
        return False
    written = format_registry.get_format(resolve_format(section))
    if unread(written, scheme, dict(zip(linears, shapes, strict=True))) is not None:
        return False
    if without_expert(linears[0]) == linears[0]:
        return True
    return written.experts_problem(scheme.weights, scheme.activations) is None


def rules_of(
    space: Space, chosen: Mapping[tuple[int, str], str], adapter: BaseModelAdapter
) -> tuple[SchemeRule, ...]:
    """The rules of a recipe that give each unit what was chosen for it.

    Args:
        space: What was chosen from.
        chosen: The name of a candidate, by block and name of the unit.
        adapter: The model's family.
    """
    blocks: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for unit in space.units:
        key = (chosen[unit.block, unit.name], _named(unit, adapter))
        blocks.setdefault(key, []).append(unit.block)
    return tuple(
        space.candidates[name].rule.model_copy(
            update={"linears": linears, "blocks": tuple(numbers)}
        )
        for (name, linears), numbers in blocks.items()
    )


def trial_recipe(recipe: Recipe, space: Space, adapter: BaseModelAdapter) -> Recipe:
    """A recipe as a search may leave it, with every candidate in some block: to be checked.

    Args:
        recipe: With a budget.
        space: What it lets a search choose from; each unit can be something.
        adapter: The model's family.
    """
    names = [name for name in space.candidates if name != EXACT] or [EXACT]
    chosen = {}
    for unit in space.units:
        turn = unit.block % len(names)
        wished = (*names[turn:], *names[:turn], EXACT)
        chosen[unit.block, unit.name] = next(name for name in wished if name in unit.bytes)
    return with_rules(recipe, rules_of(space, chosen, adapter))


def with_rules(recipe: Recipe, rules: Sequence[SchemeRule], searched: str | None = None) -> Recipe:
    """A recipe with rules in the place of its budget, behind those that it has.

    Args:
        recipe: With a budget.
        rules: What was chosen.
        searched: The receipt of the search.
    """
    section = recipe.quantization
    found = section.model_dump() | {
        "budget": None,
        "candidates": (),
        "schemes": (*section.schemes, *rules),
        "searched": searched,
        "format": resolve_format(section),
    }
    return Recipe.model_validate(recipe.model_dump() | {"quantization": found})


def _named(unit: Unit, adapter: BaseModelAdapter) -> tuple[str, ...]:
    """The linears of a unit as a rule names them, alike in all blocks that have them.

    A name says itself where no other linear of the block ends with it.
    """
    others = list(map(without_expert, adapter.linears(unit.block)))
    found = []
    for linear in dict.fromkeys(map(without_expert, unit.linears)):
        if linear in unit.linears and not any(each.endswith(f".{linear}") for each in others):
            found.append(linear)
            continue
        prefix = re.escape(adapter.layout.prefix).replace(r"\{\}", r"\d+")
        local = re.escape(linear).replace(re.escape(f".{ANY_EXPERT}."), r"\.\d+\.")
        found.append(f"re:^{prefix}{local}$")
    return tuple(found)
