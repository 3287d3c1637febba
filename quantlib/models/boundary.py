"""What crosses from one block to the next, as tensors with names: kept, and restored elsewhere.

Nearly every model hands on hidden states alone. Some hand on a tuple, and some write to dicts that
they pass to every block, such as keys and values that later blocks share.
"""

from __future__ import annotations

import re
from collections import UserDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HIDDEN = "hidden"
_OTHER = re.compile(r"(\d+):")
_STEP = re.compile(r"\[(\d+)/(\d+)\]|\{i(-?\d+)\}|\{s([^}]*)\}")


@dataclass(frozen=True)
class Boundary:
    """What one batch brings to a block.

    Attributes:
        output: What the block before gave: hidden states, or a tuple that begins with them.
        dicts: The content of the dicts among a block's arguments, by the argument's name.
    """

    output: Any
    dicts: Mapping[str, Mapping[Any, Any]]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: ``hidden``, ``hidden[1/2]``, ``shared_kv_states{i3}[0/2]``."""
        found = dict(_leaves(HIDDEN, self.output))
        for name, content in self.dicts.items():
            found |= dict(_leaves(name, dict(content)))
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Boundary:
        """What :meth:`tensors` gave."""
        trees: dict[str, Any] = {}
        for name, tensor in tensors.items():
            root = root_of(name)
            steps = [_key(match) for match in _STEP.finditer(name[len(root) :])]
            trees[root] = _grown(trees.get(root), steps, tensor)
        output = _closed(trees.pop(HIDDEN))
        return cls(output, {name: _closed(tree) for name, tree in trees.items()})

    def restore(self, arguments: Mapping[str, Any]) -> None:
        """Fills the dicts among a block's arguments."""
        for name, content in self.dicts.items():
            arguments[name].update(content)


def joined(
    boundaries: Sequence[Boundary], alike: int, axes: Mapping[str, int]
) -> dict[str, Tensor]:
    """The boundaries of batches as one, on the CPU.

    Args:
        boundaries: One for each batch.
        alike: How many of the first have samples of the same length, and are joined; each other one
            stands for itself: ``0:hidden``, ``1:hidden``.
        axes: Along which axis samples lie, by :func:`root_of` a name, where it is not the first.
    """
    parts = [boundary.tensors() for boundary in boundaries]
    found: dict[str, Tensor] = {}
    if alike:
        for name in parts[0]:
            own = [part[name].cpu() for part in parts[:alike]]
            found[name] = torch.cat(own, axes.get(root_of(name), 0))
    for number, part in enumerate(parts[alike:]):
        found |= {f"{number}:{name}": tensor.cpu() for name, tensor in part.items()}
    return found


def split(
    tensors: Mapping[str, Tensor], samples: int, axes: Mapping[str, int], device: torch.device
) -> list[Boundary]:
    """What :func:`joined` gave, as boundaries of batches on a device.

    Args:
        tensors: All of them.
        samples: How many each of the batches has that are alike.
        axes: As :func:`joined` was given them.
        device: Where the boundaries are wanted.
    """
    batches: dict[int, dict[str, Tensor]] = {}
    others: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _OTHER.match(name):
            others.setdefault(int(match[1]), {})[name[match.end() :]] = tensor.to(device)
            continue
        for number, part in enumerate(tensor.split(samples, axes.get(root_of(name), 0))):
            batches.setdefault(number, {})[name] = part.to(device)
    numbered = (each[number] for each in (batches, others) for number in sorted(each))
    return [Boundary.of(each) for each in numbered]


def first_samples(
    tensors: Mapping[str, Tensor], samples: int, axes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Of what :func:`joined` gave that of its first samples, of tokens alone."""
    return {
        name: tensor.narrow(axes.get(root_of(name), 0), 0, samples)
        for name, tensor in tensors.items()
        if not _OTHER.match(name)
    }


def root_of(name: str) -> str:
    """``hidden``, or the argument, that a tensor of a boundary belongs to."""
    return name.partition("[")[0].partition("{")[0]


def written_dicts(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The dicts among a block's arguments, which blocks may write to."""
    return {name: value for name, value in arguments.items() if isinstance(value, (dict, UserDict))}


def added(
    dicts: Mapping[str, Mapping[Any, Any]], given: Mapping[str, Mapping[Any, Any]]
) -> dict[str, dict[Any, Any]]:
    """What blocks wrote to their dicts.

    Args:
        dicts: By the name of the argument.
        given: What the model itself had put there, which it does again elsewhere.
    """
    nothing: Mapping[Any, Any] = {}
    found = {
        name: {
            key: value
            for key, value in content.items()
            if key not in (before := given.get(name, nothing)) or before[key] is not value
        }
        for name, content in dicts.items()
    }
    return {name: content for name, content in found.items() if content}


def first_tensor(output: Any) -> Tensor:
    """The hidden states in what a block gives."""
    return output[0] if isinstance(output, tuple) else output


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (tuple, list)):
        for at, item in enumerate(value):
            yield from _leaves(f"{name}[{at}/{len(value)}]", item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            kind = "i" if isinstance(key, int) else "s"
            yield from _leaves(f"{name}{{{kind}{key}}}", item)


def _key(match: re.Match[str]) -> Any:
    at, count, number, text = match.groups()
    if at is not None:
        return (int(at), int(count))
    return int(number) if number is not None else text


def _grown(tree: Any, steps: list[Any], tensor: Tensor) -> Any:
    if not steps:
        return tensor
    tree = {} if tree is None else tree
    tree[steps[0]] = _grown(tree.get(steps[0]), steps[1:], tensor)
    return tree


def _closed(tree: Any) -> Any:
    """A tree of dicts with the tuples that its keys tell of."""
    if not isinstance(tree, dict):
        return tree
    first = next(iter(tree))
    if not isinstance(first, tuple):
        return {key: _closed(value) for key, value in tree.items()}
    values = {at: _closed(value) for (at, _), value in tree.items()}
    return tuple(values.get(at) for at in range(first[1]))
