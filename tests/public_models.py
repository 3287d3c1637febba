"""Public models as facts: a config, and the names, shapes and dtypes of its tensors.

A file of ``tests/data/models`` holds one model: ``model`` is its name on the hub, ``config_from``
where the config stands, ``tensors_from`` how the names were found, ``config`` the parsed
``config.json``, and ``tensors`` rows of a pattern, a dtype, a shape, and for each ``{}`` of the
pattern the numbers that take its place: ``"0-2,4"``. A row stands for all combinations. A model
whose names nobody told has no rows: only its config is tested.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import DTYPE_BYTES
from quantlib.checks.group_size import settle
from quantlib.checks.linears import exact_linears
from quantlib.checks.model import model_problems
from quantlib.checks.recipe import load_recipe
from quantlib.models.adapter import BaseModelAdapter
from quantlib.models.layout import SharedInput, without_expert
from quantlib.recipe import SHIPPED_RECIPES, Recipe

FOLDER = Path(__file__).parent / "data" / "models"
RECIPES = ("gptq", "fp8")
"""Recipes that come with the package and that every model is planned with."""

LAYOUTS = FOLDER.with_name("layouts.json")
"""What each of them is found to be made of; ``scripts/models.py`` writes it, people review it."""


@dataclass(frozen=True)
class PublicModel:
    """What is known of a public model.

    Attributes:
        name: Its name on the hub.
        config: The parsed ``config.json``.
        tensors: The dtype and the shape of every tensor.
        config_from: Where the config stands.
        tensors_from: How the names of the tensors were found.
    """

    name: str
    config: dict[str, Any]
    tensors: dict[str, tuple[str, list[int]]]
    config_from: str
    tensors_from: str

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(math.prod(shape) * DTYPE_BYTES[dtype] for dtype, shape in self.tensors.values())

    def write(self, folder: Path) -> Path:
        """Makes a checkpoint of it: its header is real, its weights are a hole in the file."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        header, end = {}, 0
        for name, (dtype, shape) in self.tensors.items():
            start, end = end, end + math.prod(shape) * DTYPE_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        return folder


def names() -> list[str]:
    """The models that there are, as their files are called."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def read(name: str) -> PublicModel:
    """A model, by what its file is called."""
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    tensors = {
        each: (dtype, shape)
        for pattern, dtype, shape, *numbers in content["tensors"]
        for each in _named(pattern, numbers)
    }
    return PublicModel(
        name=content["model"],
        config=content["config"],
        tensors=tensors,
        config_from=content["config_from"],
        tensors_from=content["tensors_from"],
    )


def _named(pattern: str, numbers: list[str]) -> Iterator[str]:
    for each in itertools.product(*map(_numbers, numbers)):
        yield pattern.format(*each)


def _numbers(runs: str) -> list[int]:
    found: list[int] = []
    for run in runs.split(","):
        first, _, last = run.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def facts(checkpoint: Checkpoint, adapter: BaseModelAdapter) -> dict[str, Any]:
    """What a model is found to be made of, as ``tests/data/layouts.json`` records it.

    Args:
        checkpoint: Its headers, of a quantized one those of what it stands for.
        adapter: Its family.
    """
    layout = adapter.layout
    kept = exact_linears(recipe(RECIPES[0], adapter).quantization, adapter)
    quantized, kinds = 0, []
    for number in range(len(layout.kinds)):
        blocks = [block for block, own in enumerate(layout.kind_of) if own == number]
        block = blocks[0]
        exact = {*adapter.kept_exact(block), *map(without_expert, kept[block])}
        quantized += len(blocks) * sum(
            math.prod(adapter.linear_shape(block, linear))
            for linear in adapter.linears(block)
            if linear not in kept[block]
        )
        inputs = [_words(shared, exact) for shared in layout.kind(block).inputs]
        kinds.append(
            {
                "blocks": _runs(blocks),
                "inputs": [words for words in inputs if words],
                "exact": sorted(exact),
            }
        )
    return {
        "architecture": layout.architecture,
        "prefix": layout.prefix,
        "kinds": kinds,
        "extra": len(layout.extra),
        "parameters": sum(info.elements for info in checkpoint.tensors.values()),
        "quantized": quantized,
        "problems": {
            name: [str(problem) for problem in found]
            for name in RECIPES
            if (found := model_problems(recipe(name, adapter), checkpoint, adapter))
        },
    }


def recipe(name: str, adapter: BaseModelAdapter) -> Recipe:
    """A recipe that comes with the package, settled for a model."""
    return settle(load_recipe(SHIPPED_RECIPES / f"{name}.yaml"), adapter).recipe


def _words(shared: SharedInput, exact: Collection[str]) -> str:
    """An input in words: who reads it, and in parentheses what scales can be folded into."""
    linears = [linear for linear in shared.linears if linear not in exact]
    if not linears:
        return ""
    words = " ".join(linears)
    if shared.producer is not None and len(linears) == len(shared.linears):
        words += f" ({shared.producer.name})"
    return words


def _runs(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
