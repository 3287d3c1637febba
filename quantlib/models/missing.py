"""What a checkpoint lacks of a model, or has too much of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.index import listed
from quantlib.errors import Problem
from quantlib.models.experts import count_of
from quantlib.models.layout import ANY_EXPERT
from quantlib.models.names import Names
from quantlib.models.skeleton import Skeleton

_MOST_LINES = 3
_IGNORED = r"rotary_emb\.inv_freq$"
"""Old checkpoints hold the rotary embedding's frequencies; the config says the same."""


def tensor_problems(skeleton: Skeleton, names: Names, checkpoint: Checkpoint) -> list[Problem]:
    """The parameters that have no tensor, tensors of another shape, and such of no parameter.

    Args:
        skeleton: The modules.
        names: Which tensor is which parameter.
        checkpoint: The names and shapes of the tensors.
    """
    missing = [
        _missing(skeleton, checkpoint, key)
        for key in _parameters(skeleton)
        if key not in names.renamed and not names.converted.get(key) and key not in names.further
    ]
    misshapen = [*_misshapen(skeleton, names, checkpoint), *_incomplete(skeleton, names)]
    unknown = [
        Problem(
            name,
            f"is no tensor that a block of {skeleton.config.model_type} with this config has",
        )
        for name in _unknown(skeleton, names)
    ]
    return [*_summed(missing, list(checkpoint.tensors)), *_summed(misshapen), *_summed(unknown)]


def _parameters(skeleton: Skeleton) -> Iterator[str]:
    """Those that a checkpoint has to hold."""
    model = skeleton.model
    ignored = _pattern(model, "_keys_to_ignore_on_load_missing")
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for key, _ in model.named_parameters(remove_duplicate=False):
        if key not in tied and not ignored.search(key):
            yield key


def _pattern(model: object, attribute: str) -> re.Pattern[str]:
    patterns = [*(getattr(model, attribute, None) or ()), _IGNORED]
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


def _missing(skeleton: Skeleton, checkpoint: Checkpoint, key: str) -> Problem:
    what = "the checkpoint has no such tensor"
    if key != f"{skeleton.head}.weight":
        return Problem(key, what)
    embedding = f"{skeleton.embedding}.weight"
    bare = embedding.removeprefix(f"{skeleton.model.base_model_prefix}.")
    held = checkpoint.tensors.get(embedding)
    if bare != embedding and held is not None and held.name == bare:
        what += f", as is usual without the prefix 'model.' (it holds {bare})"
    remedy = "set tie_word_embeddings to true in config.json if the embedding is the head too"
    return Problem(key, what, remedy)


def _misshapen(skeleton: Skeleton, names: Names, checkpoint: Checkpoint) -> Iterator[Problem]:
    for key, parameter in skeleton.model.named_parameters():
        tensor = names.renamed.get(key)
        if tensor is not None:
            found, wanted = list(checkpoint.info(tensor).shape), list(parameter.shape)
            if found != wanted:
                yield Problem(tensor, f"has shape {found}; the config says {wanted}")


def _incomplete(skeleton: Skeleton, names: Names) -> Iterator[Problem]:
    """Mixtures of which an expert is missing."""
    for index, mixtures in skeleton.experts.items():
        for name, module in mixtures.items():
            for parameter, _ in module.named_parameters():
                key = f"{skeleton.prefix}{index}.{name}.{parameter}"
                parts = names.expert_parts(key)
                if not parts or ANY_EXPERT not in parts[0]:
                    continue
                held = set(names.converted[key])
                for part in parts:
                    for expert in range(count_of(module)):
                        tensor = part.replace(ANY_EXPERT, str(expert))
                        if tensor not in held:
                            yield Problem(tensor, "the checkpoint has no such tensor")


def _unknown(skeleton: Skeleton, names: Names) -> Iterator[str]:
    """Tensors within a block that no module of it takes."""
    ignored = _pattern(skeleton.model, "_keys_to_ignore_on_load_unexpected")
    starts = tuple(
        {
            tensor.partition(f".{index}.")[0] + f".{index}."
            for index in range(len(skeleton.blocks))
            for tensor in _tensors_of(skeleton, names, index)
        }
    )
    for tensor in names.extra:
        if tensor.startswith(starts) and not ignored.search(tensor):
            yield tensor


def _tensors_of(skeleton: Skeleton, names: Names, index: int) -> Iterable[str]:
    start = f"{skeleton.prefix}{index}."
    for name, _ in skeleton.blocks[index].named_parameters():
        tensor = names.renamed.get(start + name)
        if tensor is not None:
            return [tensor]
    return []


def _summed(problems: list[Problem], held: Sequence[str] = ()) -> list[Problem]:
    """A few problems as they are; many of one kind, which have one cause, as one."""
    if len(problems) <= _MOST_LINES:
        return problems
    first, *others = problems
    what = f"{first.what}, and so with {len(others)} more: {listed([p.where for p in others])}"
    if held:
        what += f"; it holds {listed(held)}"
    return [Problem(first.where, what, "the config or the names are another model's")]
