"""What the name and the shape of a tensor say of it, whatever the family. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

SMALLEST_SIDE = 32
"""Linears with fewer outputs or inputs give gates and decays, one number a head, or read few."""

FEW_OUTPUTS = f"has fewer than {SMALLEST_SIDE} outputs or inputs: a gate per head, no features"
OTHER_EXPERTS = "holds several matrices, which the family computes by code of its own"
NO_LINEAR = "is no linear that reads features: a router, a convolution, or one that is not used"

VISION = frozenset(
    {
        "vision_tower",
        "visual",
        "vision_model",
        "vision_encoder",
        "multi_modal_projector",
        "embed_vision",
    }
)
"""Parts of names of what images go through, and text does not."""

OUTSIDE = "lies outside of the blocks"
DRAFTING = "drafts tokens, by its name or number"
DRAFTS = re.compile(r"mtp|nextn|draft|eagle", re.IGNORECASE)
"""In names of modules that guess tokens ahead."""

Shape = tuple[int, ...]

_READING_ALIKE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("wq", "wk", "wv"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)
"""Last parts of names of linears that read the same tensor."""

_LEADING_BACK = ("down_proj", "w2", "fc2", "wo", "output_linear")
"""Last parts of names of the linears of an expert whose outputs are hidden states."""

_NUMBERED = re.compile(r"((?:[^.]+\.)*?)(\d+)\.(.+)")
_WORDS = {
    "embedding": re.compile(r"embed|wte$|wpe$|relative_attention_bias|position_bias"),
    "norm": re.compile(r"norm|^ln|_ln$"),
    "convolution": re.compile(r"conv"),
}
_ROUTER = re.compile(r"router|^wg$")


def numbered(name: str) -> tuple[str, int, str] | None:
    """What stands before the first number of a name, that number, and what stands behind it."""
    match = _NUMBERED.fullmatch(name)
    return None if match is None else (match[1], int(match[2]), match[3])


def exact_reason(linear: str, shape: Shape, experts: int) -> str | None:
    """Why a matrix within a block stays exact, by its name and shape; None where it need not.

    Args:
        linear: Its name within the block, without ``.weight``.
        shape: Its shape.
        experts: How many experts the block has.
    """
    last = linear.rpartition(".")[2].lower()
    if len(shape) != 2:
        return NO_LINEAR
    for kind, words in _WORDS.items():
        if words.search(last):
            return f"is no linear, by its name: {kind}"
    if any(_ROUTER.search(part) for part in linear.lower().split(".")):
        return "chooses experts, by its name"
    if experts and last == "gate" and shape[0] <= 2 * experts:
        return "chooses experts: one output each"
    return FEW_OUTPUTS if min(shape) < SMALLEST_SIDE else None


def by_shared_input(linears: Mapping[str, Shape]) -> list[tuple[str, ...]]:
    """Linears that read the same tensor, as their names and widths say.

    Args:
        linears: Shapes ``(out_features, in_features)`` by name.
    """
    groups: dict[tuple[str, int, object], list[str]] = {}
    for name, shape in linears.items():
        path, _, last = name.rpartition(".")
        alike = next((names for names in _READING_ALIKE if last in names), name)
        groups.setdefault((path, shape[1], alike), []).append(name)

    def place(name: str) -> int:
        last = name.rpartition(".")[2]
        return next((names.index(last) for names in _READING_ALIKE if last in names), 0)

    return [tuple(sorted(group, key=place)) for group in groups.values()]


def is_transposed(stacks: Mapping[str, Shape], hidden: int | None) -> bool | None:
    """Whether the matrices in tensors ``[experts, a, b]`` of a mixture are ``[in, out]``.

    Args:
        stacks: Shapes by the last part of the tensors' names.
        hidden: Channels of the hidden states.

    Returns:
        None where it cannot be told.
    """
    first, down = stacks.get("gate_up_proj"), stacks.get("down_proj")
    if first is not None and down is not None:
        _, rows, columns = first
        _, back_rows, back_columns = down
        if (rows, columns) == (2 * back_columns, back_rows):
            return False
        return True if (columns, rows) == (2 * back_rows, back_columns) else None
    votes = set()
    for name, (_, rows, columns) in stacks.items():
        outer, inner = (rows, columns) if leads_back(name) else (columns, rows)
        if hidden in (outer, inner) and outer != inner:
            votes.add(inner == hidden)
    return votes.pop() if len(votes) == 1 else None


def leads_back(name: str) -> bool:
    """Whether a linear of an expert gives hidden states, by the last part of its name."""
    return name.rpartition(".")[2] in _LEADING_BACK


def outermost(names: Iterable[str], kept: Sequence[str]) -> dict[str, list[str]]:
    """Tensors by the outermost module that holds none of some others.

    Args:
        names: Names of tensors.
        kept: What the names of the others begin with: ``model.layers.0.``.

    Returns:
        The names of the tensors by that of the module: ``model.vision_tower``, ``lm_head``.
    """
    above = {""}
    for prefix in kept:
        parts = prefix.rstrip(".").split(".")
        above.update(".".join(parts[:count]) for count in range(1, len(parts) + 1))
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        count = 1
        while count < len(parts) - 1 and ".".join(parts[:count]) in above:
            count += 1
        found.setdefault(".".join(parts[:count]), []).append(name)
    return found


def outside_of(
    outer: Mapping[str, Shape], prefix: str, named: Collection[str | None]
) -> dict[str, str]:
    """What outside of the blocks holds matrices, and why they stay exact.

    Args:
        outer: Shapes of the tensors outside of the blocks.
        prefix: What the names of a block's tensors start with, with ``{}`` for its number.
        named: Modules that are left out: the embedding and the head.

    Returns:
        Why, by the name of a linear, or with a dot at its end of a module.
    """
    matrices = [
        name
        for name, shape in outer.items()
        if len(shape) > 1 and name.endswith(".weight") and name.removesuffix(".weight") not in named
    ]
    found = {}
    for module, names in outermost(matrices, [prefix.format(0)]).items():
        drafts = DRAFTS.search(module) or module.startswith(prefix.partition("{}")[0])
        found[module if f"{module}.weight" in names else f"{module}."] = (
            DRAFTING if drafts else OUTSIDE
        )
    return found
