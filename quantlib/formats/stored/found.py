"""What a reader finds in a quantized checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from quantlib.checkpoint.header import TensorInfo
from quantlib.formats.stored.weights import StoredWeight

FLOATS = ("BF16", "F16", "F32")
"""The dtypes that scales mostly have."""

_OF_ACTIVATIONS = (
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "activation_scale",
    "activation_scale_ub",
    "output_scale",
    "output_zero_point",
    "k_scale",
    "kv_scale",
    "v_scale",
    "q_scale",
    "prob_scale",
)
"""Last parts of names of tensors that say how activations or the cache are rounded; a plain
checkpoint has no use for them."""


@dataclass
class Found:
    """What a reader finds.

    Attributes:
        words: What the checkpoint is, in a few words: ``FP8 block 128x128``.
        weights: The weights that lie quantized.
        used: The tensors that they lie in, and those that a plain checkpoint does not have.
        cpu_problem: Why vLLM does not serve such a checkpoint on a CPU; None where it does.
    """

    words: str = ""
    weights: list[StoredWeight] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    cpu_problem: str | None = None

    def add(self, weight: StoredWeight) -> None:
        """Notes a weight and what it lies in."""
        self.weights.append(weight)
        self.used.update(info.name for info in weight.parts.values())

    def drop_activations(self, tensors: Iterable[str]) -> None:
        """Leaves out what only concerns activations and caches."""
        self.used.update(name for name in tensors if name.rpartition(".")[2] in _OF_ACTIVATIONS)


def by_module(
    tensors: Mapping[str, TensorInfo], parts: Collection[str]
) -> dict[str, dict[str, TensorInfo]]:
    """The tensors of some last names, by module and last name."""
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        module, _, part = name.rpartition(".")
        if part in parts:
            modules.setdefault(module, {})[part] = info
    return modules


def joined(words: Sequence[str]) -> str:
    """Different words, each once."""
    return " and ".join(dict.fromkeys(words))
