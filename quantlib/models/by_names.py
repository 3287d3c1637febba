"""The layout of a model that cannot be walked: from names and shapes of its tensors alone.

It says what can be quantized without a forward. Matrices are taken to be ``[out_features,
in_features]``, as ``nn.Linear`` has them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.index import listed
from quantlib.errors import InvalidInputError, Problem
from quantlib.models.drafts import draft_blocks_of, drafting_of
from quantlib.models.layout import (
    ANY_EXPERT,
    EXPERT_PARTS,
    BlockKind,
    Experts,
    Layout,
    Obstacle,
    SharedInput,
    of_expert,
)
from quantlib.models.naming import (
    DRAFTS,
    SMALLEST_SIDE,
    Shape,
    by_shared_input,
    exact_reason,
    is_transposed,
    leads_back,
    numbered,
    outside_of,
)

_EXPERT = re.compile(r"((?:.+\.)?experts)\.(\d+)\.(.+)")
_LAYERS_FIELDS = ("num_hidden_layers", "n_layer", "n_layers")
_TEXT_FIELDS = re.compile(r"text|llm|language")
_EMBEDS_TOKENS = re.compile(r"^(?!.*(posi|per_layer|type)).*embed|^wte$")
_HEADS = ("lm_head", "output", "head", "output_layer", "embed_out", "unembed")
_UNSURE = "lies with those of other experts, and which side is the input cannot be told"
_MOST_TOLD = 3


def layout_of_names(checkpoint: Checkpoint, problems: Sequence[Problem]) -> Layout:
    """The layout that names and shapes suggest.

    The blocks are the numbered modules with most weights in matrices, ``model.layers.0.`` and so
    on. What lies outside of them stays exact.

    Args:
        checkpoint: The config, and the names and shapes of the tensors.
        problems: Why the model cannot be walked.

    Raises:
        InvalidInputError: No blocks are to be seen in the names, or experts are missing.
    """
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    run = _blocks_of(shapes, checkpoint.config, problems)
    inner = [run.prefix.format(block) for block in range(run.count)]
    outer = {name: shape for name, shape in shapes.items() if not name.startswith(tuple(inner))}
    embedding = _embedding(outer, run.prefix)
    hidden = outer[f"{embedding}.weight"][1] if embedding else None
    kinds: list[BlockKind] = []
    known: dict[tuple[tuple[str, Shape], ...], int] = {}
    kind_of = []
    for prefix, tensors in zip(inner, run.tensors, strict=True):
        signature = tuple(sorted(tensors.items()))
        if signature not in known:
            known[signature] = len(kinds)
            kinds.append(_Kind(prefix, tensors, hidden).kind())
        kind_of.append(known[signature])
    if not any(kind.shapes for kind in kinds):
        raise InvalidInputError([*problems, _no_blocks(shapes)])
    head = _head(outer, embedding)
    tied = bool(checkpoint.config.get("tie_word_embeddings", False))
    of_tokens = _matrix(outer.get(f"{embedding}.weight"))
    of_head = of_tokens if tied else _matrix(outer.get(f"{head}.weight"))
    architectures = checkpoint.config.get("architectures") or ("",)
    outside = outside_of(outer, run.prefix, {embedding, head})
    drafting = drafting_of(outer, outside)
    return Layout(
        architecture=str(architectures[0] or ""),
        prefix=run.prefix,
        module_prefix=run.prefix,
        kinds=tuple(kinds),
        kind_of=tuple(kind_of),
        embedding=embedding,
        head=head or "lm_head",
        tied=tied,
        embedding_shape=of_tokens,
        head_shape=of_head,
        obstacles=tuple(
            Obstacle(where=each.where, what=each.what, remedy=each.remedy) for each in problems
        ),
        outside=outside,
        drafting=tuple(drafting),
        draft_blocks=draft_blocks_of(drafting, kinds, kind_of),
    )


def _matrix(shape: Shape | None) -> tuple[int, int]:
    return (shape[0], shape[1]) if shape is not None and len(shape) == 2 else (0, 0)


@dataclass(frozen=True)
class _Run:
    """Numbered modules: what their names begin with, and the tensors of each by name within."""

    prefix: str
    tensors: tuple[Mapping[str, Shape], ...]

    @property
    def count(self) -> int:
        return len(self.tensors)


def _blocks_of(
    shapes: Mapping[str, Shape], config: Mapping[str, Any], problems: Sequence[Problem]
) -> _Run:
    runs: dict[str, dict[int, dict[str, Shape]]] = defaultdict(lambda: defaultdict(dict))
    sizes: dict[str, int] = defaultdict(int)
    for name, shape in shapes.items():
        if (parts := numbered(name)) is not None:
            before, number, rest = parts
            runs[before][number][rest] = shape
            sizes[before] += _matrix_elements(shape)
    chosen = max(sizes, key=sizes.__getitem__, default="")
    if not sizes.get(chosen):
        raise InvalidInputError([*problems, _no_blocks(shapes)])
    blocks = runs[chosen]
    count = max(blocks) + 1
    if count > 2 * len(blocks):  # numbers of something else
        raise InvalidInputError([*problems, _no_blocks(shapes)])
    stated = _stated_blocks(config)
    if stated and stated < count:  # what drafts tokens may be numbered on
        count = stated
    return _Run(
        chosen.replace("{", "{{").replace("}", "}}") + "{}.",
        tuple(blocks.get(number, {}) for number in range(count)),
    )


def _matrix_elements(shape: Shape) -> int:
    if len(shape) not in (2, 3) or min(shape[-2:]) < SMALLEST_SIDE:
        return 0
    elements = 1
    for side in shape:
        elements *= side
    return elements


def _no_blocks(shapes: Mapping[str, Shape]) -> Problem:
    return Problem(
        "the checkpoint",
        f"shows no blocks: of {len(shapes)} tensors ({listed(list(shapes))}) none is a matrix in a "
        "numbered module, as model.layers.0.mlp.up_proj.weight is",
    )


def _stated_blocks(config: Mapping[str, Any]) -> int | None:
    """How many blocks the config says that the language model has."""
    parts = [
        value
        for field, value in config.items()
        if isinstance(value, Mapping) and _TEXT_FIELDS.search(field)
    ]
    for part in (*parts, config):
        for field in _LAYERS_FIELDS:
            count = part.get(field)
            if isinstance(count, int) and count > 0:
                return count
    return None


def _embedding(outer: Mapping[str, Shape], prefix: str) -> str:
    """The module that embeds tokens: of those beside the blocks first, the largest; "" if none."""
    found: list[tuple[bool, int, int, str]] = []
    numbered_on = prefix.removesuffix("{}.")
    beside = numbered_on.removesuffix(".").rpartition(".")[0]
    for name, shape in outer.items():
        module, _, last = name.rpartition(".")
        called = module.rpartition(".")[2].lower()
        if DRAFTS.search(module) or (numbered_on and module.startswith(numbered_on)):
            continue
        if last == "weight" and len(shape) == 2 and _EMBEDS_TOKENS.search(called):
            found.append((module.startswith(beside), shape[0], -module.count("."), module))
    return max(found)[-1] if found else ""


def _head(outer: Mapping[str, Shape], embedding: str) -> str | None:
    """The linear that gives the logits: the outermost with a name of one; None if there is none."""
    found = [
        module
        for name, shape in outer.items()
        for module, _, last in [name.rpartition(".")]
        if last == "weight" and len(shape) == 2 and module.rpartition(".")[2] in _HEADS
    ]
    found = [name for name in found if name != embedding and not DRAFTS.search(name)]
    return min(found, key=lambda name: (name.count("."), name), default=None)


class _Kind:
    """What one block is made of."""

    def __init__(self, prefix: str, tensors: Mapping[str, Shape], hidden: int | None) -> None:
        """Sorts the tensors.

        Args:
            prefix: What their names begin with, for messages.
            tensors: Shapes by name within the block.
            hidden: Channels of the hidden states, where known.
        """
        self._prefix = prefix
        self._dense: dict[str, Shape] = {}
        self._named: dict[str, dict[int, Shape]] = defaultdict(dict)
        self._stacked: dict[str, dict[str, tuple[str, Shape]]] = defaultdict(dict)
        self._hidden = hidden
        self._shapes: dict[str, tuple[int, int]] = {}
        self._modules: dict[str, str] = {}
        self._exact: dict[str, str] = {}
        self._experts: list[Experts] = []
        self._inputs: list[SharedInput] = []
        for name, shape in tensors.items():
            module, _, last = name.rpartition(".")
            linear = module if last == "weight" else name
            path, _, own = linear.rpartition(".")
            if len(shape) == 3 and path.rpartition(".")[2] == "experts":
                self._stacked[path][own] = (name, shape)
            elif last == "weight" and (match := _EXPERT.fullmatch(module)) and len(shape) == 2:
                self._named[f"{match[1]}.{ANY_EXPERT}.{match[3]}"][int(match[2])] = shape
            elif last == "weight" and len(shape) > 1:
                self._dense[module] = shape

    def kind(self) -> BlockKind:
        """The linears by shared input, dense ones before those of experts."""
        mixtures = {
            name.partition(f".{ANY_EXPERT}.")[0]: max(each) + 1
            for name, each in self._named.items()
        }
        mixtures |= {
            path: next(iter(stacks.values()))[1][0] for path, stacks in self._stacked.items()
        }
        self._add_dense(max(mixtures.values(), default=0))
        for path, count in mixtures.items():
            if path in self._stacked:
                self._add_stacked(path, count)
            else:
                self._add_named(path, count)
        return BlockKind(
            inputs=tuple(self._inputs),
            shapes=self._shapes,
            modules=self._modules,
            exact=self._exact,
            experts=tuple(self._experts),
        )

    def _add_dense(self, experts: int) -> None:
        linears = {}
        for name, shape in self._dense.items():
            if (why := exact_reason(name, shape, experts)) is not None:
                self._exact[name] = why
            else:
                linears[name] = shape
        self._add(linears, 0)

    def _add(self, linears: Mapping[str, Shape], experts: int) -> None:
        for rows_columns in by_shared_input(linears):
            self._inputs.append(
                SharedInput(name=rows_columns[0], linears=rows_columns, experts=experts)
            )
        self._shapes |= {name: (shape[0], shape[1]) for name, shape in linears.items()}

    def _add_named(self, path: str, count: int) -> None:
        found = {
            name: each
            for name, each in self._named.items()
            if name.startswith(f"{path}.{ANY_EXPERT}.")
        }
        if missing := list(_missing(found, count)):
            raise InvalidInputError(
                Problem(f"{self._prefix}{name}.weight", what) for name, what in missing[:_MOST_TOLD]
            )
        linears = {}
        for name, each in found.items():
            if min(each[0]) < SMALLEST_SIDE:
                why = exact_reason(name, each[0], count) or ""
                self._exact |= {of_expert(name, expert): why for expert in range(count)}
            else:
                linears[name] = each[0]
        self._add(dict(sorted(linears.items(), key=lambda item: leads_back(item[0]))), count)

    def _add_stacked(self, path: str, count: int) -> None:
        stacks = self._stacked[path]
        turned = is_transposed({own: shape for own, (_, shape) in stacks.items()}, self._hidden)
        if turned is None:
            self._exact |= {f"{path}.{own}": _UNSURE for own in stacks}
            return
        linears = {}
        for own, (_, (_, rows, columns)) in stacks.items():
            if turned:
                rows, columns = columns, rows
            parts = EXPERT_PARTS.get(own, (own,))
            for part in parts:
                linears[f"{path}.{ANY_EXPERT}.{part}"] = (rows // len(parts), columns)
        if any(min(shape) < SMALLEST_SIDE for shape in linears.values()):
            self._exact |= {f"{path}.{own}": "its matrices are too small" for own in stacks}
            return
        self._modules |= {name: name for name in linears}
        self._experts.append(
            Experts(
                module=path,
                count=count,
                parts={own: (name,) for own, (name, _) in stacks.items()},
                transposed=turned,
            )
        )
        self._add(dict(sorted(linears.items(), key=lambda item: leads_back(item[0]))), count)


def _missing(linears: Mapping[str, Mapping[int, Shape]], count: int) -> Iterator[tuple[str, str]]:
    """Experts that lack a linear, or have one of another shape."""
    for name, each in linears.items():
        first = next(iter(each.values()))
        for expert in range(count):
            if expert not in each:
                yield of_expert(name, expert), "the checkpoint has no such tensor"
            elif each[expert] != first:
                yield (
                    of_expert(name, expert),
                    f"has shape {list(each[expert])}, others {list(first)}",
                )
