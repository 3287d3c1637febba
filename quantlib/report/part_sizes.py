"""Where the bits of a checkpoint went: by part of the model and scheme, scales included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.checks.kinds import kind_of
from quantlib.models.family import ModelFamily
from quantlib.models.naming import DRAFTS, VISION
from quantlib.report.model import PartSize
from quantlib.scheme_rules import EXACT, OuterKind
from quantlib.schemes import LinearScheme

_REST = "norms, routers and others"
_FIRST = (
    *("attention", "linear attention", "MLP", "experts", "shared experts"),
    *("embeddings", "head"),
)

Key = tuple[str, str]
"""A part and a scheme."""


def part_sizes(
    original: Checkpoint,
    written: Mapping[str, TensorInfo],
    adapter: ModelFamily,
    by_block: Sequence[Mapping[str, LinearScheme]],
    outer: Mapping[OuterKind, LinearScheme],
) -> list[PartSize]:
    """What each part of a model takes, those of linears first.

    Args:
        original: The model's headers.
        written: The checkpoint's tensors, by name.
        adapter: The model's family.
        by_block: The schemes of the linears that are quantized, by block and name within it.
        outer: Those of the head and the embeddings, where they are quantized.
    """
    keys: dict[str, Key] = {}
    linears: Counter[Key] = Counter()
    weights: Counter[Key] = Counter()
    for block, schemes in enumerate(by_block):
        for linear, scheme in schemes.items():
            key = (_kind(linear), scheme.words)
            keys[adapter.linear_name(block, linear)] = key
            rows, columns = adapter.linear_shape(block, linear)
            weights[key] += rows * columns
            linears[key] += 1
    for kind, scheme in outer.items():
        key = ("head" if kind == "lm_head" else kind, scheme.words)
        keys[adapter.outer_module(kind)] = key
        rows, columns = adapter.outer_shape(kind)
        weights[key] += rows * columns
        linears[key] += 1
    exact = {
        adapter.linear_name(block, linear)
        for block in range(adapter.blocks)
        for linear in adapter.kept_exact(block)
    }
    stored: Counter[Key] = Counter()
    for name, info in written.items():
        module = name.rpartition(".")[0]
        quantized = keys.get(module)
        key = quantized or (_REST if module in exact else _part(name, info, adapter), EXACT)
        stored[key] += info.bytes
        if quantized is None and (name in original.tensors or module == adapter.head):
            weights[key] += info.elements
    # Linears of draft layers that were rounded have other tensors than they had.
    for name, info in original.tensors.items():
        module = name.rpartition(".")[0]
        if name not in written and f"{module}.weight_scale" in written and module not in keys:
            weights[_part(name, info, adapter), EXACT] += info.elements
    ordered = sorted(stored, key=lambda key: (_FIRST.index(key[0]) if key[0] in _FIRST else 9, key))
    return [
        PartSize(
            part=key[0],
            scheme=key[1],
            linears=linears[key],
            weights=weights[key],
            bytes=stored[key],
        )
        for key in ordered
    ]


def _kind(linear: str) -> str:
    return kind_of(linear).replace("_", " ").replace("mlp", "MLP")


def _part(name: str, info: TensorInfo, adapter: ModelFamily) -> str:
    """What a tensor is of that is no quantized linear's."""
    module = name.rpartition(".")[0]
    if module == adapter.embedding:
        return "embeddings"
    if module == adapter.head:
        return "head"
    if not VISION.isdisjoint(name.split(".")):
        return "towers"
    if DRAFTS.search(name) or any(map(name.startswith, adapter.layout.draft_blocks)):
        return "draft layers"
    before = adapter.layout.prefix.partition("{}")[0]
    within = module.removeprefix(before).partition(".")[2]
    is_matrix = len(info.shape) > 1 and name.startswith(before)
    return _kind(within) if is_matrix else _REST
