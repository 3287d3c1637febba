"""What layers that draft tokens are made of: their matrices, and a block of the model like them.

vLLM builds a draft block as one of the model, so that what it takes codes for there it takes codes
for here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantlib.models.layout import ANY_EXPERT, BlockKind, without_expert
from quantlib.models.naming import DRAFTING, Shape

_EXPERTS = ".experts."


def drafting_of(outer: Mapping[str, Shape], outside: Mapping[str, str]) -> dict[str, Shape]:
    """The matrices of modules that draft tokens.

    Args:
        outer: Shapes of the tensors outside of the blocks.
        outside: Modules outside of the blocks, and why they stay exact.

    Returns:
        Shapes by name without ``.weight``; ``*`` stands for the number of an expert.
    """
    modules = tuple(module for module, why in outside.items() if why == DRAFTING)
    return {
        without_expert(name.removesuffix(".weight")): tuple(shape)
        for name, shape in outer.items()
        if len(shape) > 1 and name.startswith(modules)
    }


def draft_blocks_of(
    drafting: Mapping[str, Shape], kinds: Sequence[BlockKind], kind_of: Sequence[int]
) -> dict[str, int]:
    """The blocks that draft tokens, each with the last block of the model that is like it.

    It is where all linears of that block are there by the same names and in the same shapes, and
    either both have experts or neither; those of experts are not compared.

    Args:
        drafting: Shapes of the matrices of modules that draft tokens.
        kinds: The kinds of the model's blocks.
        kind_of: For each block, which of the kinds it is.

    Returns:
        The number of the block by what the names of the draft block's tensors start with.
    """
    found: dict[str, int] = {}
    for number, kind in enumerate(kinds):
        block = max(at for at, own in enumerate(kind_of) if own == number)
        linears = {name: shape for name, shape in kind.shapes.items() if ANY_EXPERT not in name}
        first = next(iter(linears), None)
        prefixes = [
            name.removesuffix(first) for name in drafting if first and name.endswith(f".{first}")
        ]
        for prefix in prefixes:
            own = [name for name in drafting if name.startswith(prefix)]
            experts = any(_EXPERTS in name for name in own)
            alike = all(drafting.get(prefix + name) == shape for name, shape in linears.items())
            if alike and experts == (len(linears) < len(kind.shapes)):
                found[prefix] = max(block, found.get(prefix, 0))
    return found
