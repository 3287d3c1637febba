"""What vLLM makes of names in a checkpoint: which linears it computes as one, what it asks for.

All of it is looked up in ``vllm.json``, which ``scripts/vllm_table.py`` writes by letting the
pinned vLLM build and load tiny models. Numbers of blocks and experts are ``*`` in its names, and
``#`` where vLLM counts a block's number on from the last block.
Needs neither torch nor vLLM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("vllm.json")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_PATTERN = "re:"


@dataclass(frozen=True)
class Experts:
    """How vLLM takes the experts of a mixture where each linear has tensors of its own.

    Attributes:
        module: Where they lie: expert ``E`` has ``{module}.{E}.{name}``.
        first: Names of the linears that are multiplied first, which vLLM holds as one.
        second: Names of those that are multiplied second.
        stacked: Tensors of the original that hold a linear of every expert, by general names;
            empty where each expert has its own.
    """

    module: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    stacked: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of an expert's linears."""
        return self.first + self.second


class VllmNames:
    """What vLLM makes of the names of an architecture.

    Args:
        row: Of the table.
        blocks: How many blocks the model has, if that is known.

    Attributes:
        model_class: vLLM's class for it; one that begins with ``Transformers`` computes the
            modules of transformers.
    """

    def __init__(self, row: Mapping[str, Any], blocks: int | None = None) -> None:
        self._blocks = blocks
        self.model_class: str = row["class"]
        self._never = frozenset(row.get("never", ()))
        self._spelled: Mapping[str, list[str]] = row.get("spelled", {})
        self._experts: Mapping[str, Mapping[str, Any]] = row.get("experts", {})
        self._outer: Mapping[str, list[str]] = {
            "lm_head": row.get("head", []),
            "embeddings": row.get("embedding", []),
        }
        self._whole = {
            name: fused for fused, parts in row.get("fused", {}).items() for name in parts
        }
        self._order = {
            name: at for parts in row.get("fused", {}).values() for at, name in enumerate(parts)
        }
        self._mixtures = {
            name: module
            for module, content in self._experts.items()
            for name in (module, *content.get("stacked", ()))
        }

    def fused(self, linears: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Which of some linears vLLM computes as one; they need one scheme, or none of them any.

        Args:
            linears: Names on disk without ``.weight``, such as those of a block.

        Returns:
            The parts, in vLLM's order, by the name under which vLLM asks for them. All linears of
            all experts of a mixture are the parts of one. Linears that are alone are left out.
        """
        found: dict[str, list[tuple[int, str]]] = {}
        for linear in linears:
            name, numbers = _general(linear)
            if name in self._whole:
                whole = _filled(self._whole[name], numbers)
                found.setdefault(whole, []).append((self._order[name], linear))
        return {
            whole: tuple(linear for _, linear in sorted(parts, key=lambda part: part[0]))
            for whole, parts in found.items()
            if len(parts) > 1
        }

    def spelled(self, module: str) -> tuple[str, ...]:
        """What a quantization config must ignore for a module to stay exact.

        vLLM asks for modules by names of its own. One that is exact on disk and that vLLM takes
        for quantized is filled with bytes that mean something else, without an error.

        Args:
            module: A name on disk without ``.weight``: of a linear, of the module that all experts
                of a mixture lie in, or of a tensor that holds a linear of all experts.

        Returns:
            The name on disk and vLLM's, of which some may be regular expressions after ``re:``. A
            name that depends on the number of blocks is one for all blocks where that is unknown.
        """
        name, numbers = _general(module)
        others = self._spelled.get(name, [])
        if name in self._mixtures:
            others = self._experts[self._mixtures[name]]["ignored"]
        filled = [_filled(other, numbers, self._blocks) for other in others]
        return tuple(dict.fromkeys([module, *filled]))

    def within(self, module: str) -> tuple[str, ...]:
        """What vLLM calls linears outside of the blocks that it has under other names.

        Args:
            module: A linear, or with a dot at its end a module that they lie in.

        Returns:
            Linears, and with a dot at the end modules.
        """
        general, _ = _general(module)
        found = []
        for name, others in self._spelled.items():
            if name == general or (general.endswith(".") and name.startswith(general)):
                for other in others:
                    before, numbered, _ = other.partition("*")
                    found.append(before if numbered else other)
        return tuple(dict.fromkeys(found))

    def outer(self, kind: str) -> tuple[str, ...]:
        """What a config names the head or the embedding by, for vLLM to read its codes.

        Args:
            kind: ``lm_head`` or ``embeddings``.

        Returns:
            The name on disk first, or a class; empty where vLLM reads no codes.
        """
        return tuple(_filled(name, []) for name in self._outer[kind])

    def never(self, module: str) -> bool:
        """Whether vLLM takes a weight for exact whatever a config says: it must stay exact."""
        return _general(module)[0] in self._never

    def experts(self, module: str) -> Experts | None:
        """How vLLM takes the experts of a mixture.

        Args:
            module: The module that they lie in, a linear of one of them, or a tensor that holds a
                linear of all of them.

        Returns:
            None where it is not of a mixture that vLLM knows.
        """
        name, numbers = _general(module)
        mixture = self._mixtures.get(name) or name.rpartition(".*.")[0]
        if mixture not in self._experts:
            return None
        content = self._experts[mixture]
        first, second = content["names"] or ((), ())
        return Experts(
            _filled(mixture, numbers),
            tuple(first),
            tuple(second),
            tuple(_filled(name, numbers) for name in content.get("stacked", ())),
        )


@cache
def vllm_names(architecture: str, blocks: int | None = None) -> VllmNames | None:
    """What vLLM makes of the names of an architecture.

    Args:
        architecture: Its name in ``config.json``.
        blocks: How many blocks the model has, if that is known.

    Returns:
        None where the table does not have it.
    """
    row = _table()["architectures"].get(architecture)
    return None if row is None else VllmNames(row, blocks)


def vllm_serves(architecture: str) -> str | None:
    """By which class vLLM serves an architecture.

    Args:
        architecture: Its name in ``config.json``.

    Returns:
        A class that begins with ``Transformers`` computes the modules of transformers. None where
        vLLM has no class for it, and was not seen to load it otherwise.
    """
    if (names := vllm_names(architecture)) is not None:
        return names.model_class
    return architecture if architecture in _table()["known"] else None


def not_served(architecture: str | None) -> str | None:
    """That nobody saw the pinned vLLM serve an architecture, in words; None where it does."""
    if architecture and vllm_serves(architecture) is not None:
        return None
    return f"vLLM {vllm_version()} is not known to serve {architecture or 'it'}"


def vllm_version() -> str:
    """The version of the vLLM that the table is of."""
    version: str = _table()["vllm"]
    return version


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return table


def _general(name: str) -> tuple[str, list[str]]:
    """A name as the table has it, and the numbers that it had."""
    return _NUMBER.sub("*", name), _NUMBER.findall(name)


def _filled(name: str, numbers: list[str], blocks: int | None = None) -> str:
    """A name of the table for the numbers of another name; it may have fewer of them."""
    plain = name.removeprefix(_PATTERN)
    rest = iter(numbers)
    if "#" in plain and blocks is None:
        return f"{_PATTERN}{re.sub(r'#|[*]', r'[0-9]+', plain.replace('.', r'[.]'))}$"

    def number(match: re.Match[str]) -> str:
        found = next(rest)
        return found if match[0] == "*" else str(int(found) + (blocks or 0))

    plain = re.sub(r"[*#]", number, plain)
    return f"{_PATTERN}{re.escape(plain)}$" if name.startswith(_PATTERN) else plain
