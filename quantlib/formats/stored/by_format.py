"""Checkpoints in a format that another package adds: read as that format parses what it wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantlib.checkpoint.checkpoint import FLOAT_DTYPES, Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.source import FileSource
from quantlib.formats.base import BaseFormat
from quantlib.formats.stored.faults import Faults
from quantlib.formats.stored.found import Found, joined
from quantlib.formats.stored.weights import StoredWeight, read_whole
from quantlib.schemes import LinearScheme

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FormatWeight(StoredWeight):
    """A weight as a format parses it, whole whatever rows are wanted.

    Attributes:
        made_by: The format.
        scheme: What it says of the linear.
    """

    made_by: BaseFormat
    scheme: LinearScheme

    def pieces(self, source: FileSource, first: int, last: int) -> Iterator[Tensor]:
        """The rows from ``first`` to before ``last``."""
        tensors = {part: read_whole(source, info) for part, info in self.parts.items()}
        linear = self.made_by.parse(tensors, self.scheme.weights)
        yield self.finished(linear, None)[first:last]


def read_by_format(
    made_by: BaseFormat,
    checkpoint: Checkpoint,
    given: Mapping[str, Any],
    dtype: str,
    faults: Faults,
) -> Found:
    """Finds the linears that a format wrote: those with a tensor that is not of plain numbers."""
    found, words, problems = Found(), [], []
    scheme_of = made_by.read_schemes(given)
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, info in checkpoint.tensors.items():
        module, _, part = name.rpartition(".")
        if part != "bias":
            modules.setdefault(module, {})[part] = info
    for module, parts in modules.items():
        if all(info.dtype in FLOAT_DTYPES for info in parts.values()):
            continue
        scheme = scheme_of(module)
        first = next(iter(parts.values()))
        if scheme is None:
            faults.tensor("exact", first.name, "is quantized, but the config leaves it exact")
            continue
        try:
            shape = _shape(made_by, parts, scheme)
        except (KeyError, RuntimeError, ValueError) as error:
            what = f"does not lie as {scheme.words} does in {made_by.name}: {error}"
            faults.tensor("parts", first.name, what)
            continue
        found.add(FormatWeight(f"{module}.weight", shape, dtype, parts, made_by, scheme))
        words.append(scheme.words)
        problems.append(made_by.cpu_problem(scheme.weights, scheme.activations))
    found.words = f"{made_by.name} {joined(words)}"
    found.cpu_problem = next((problem for problem in problems if problem), None)
    return found


def _shape(
    made_by: BaseFormat, parts: Mapping[str, TensorInfo], scheme: LinearScheme
) -> tuple[int, ...]:
    """Of the weight, which is parsed without content."""
    import torch

    from quantlib.checkpoint.tensors import TORCH_DTYPES

    tensors = {
        part: torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype], device="meta")
        for part, info in parts.items()
    }
    return tuple(made_by.parse(tensors, scheme.weights).codes.shape)
