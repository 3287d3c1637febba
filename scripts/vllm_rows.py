"""From what vLLM did with a model's names to a row of the table: part of scripts/vllm_table.py."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from vllm_probe import Seen, experts_module

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_SHARDS = {"q": "0", "k": "1", "v": "2", "w1": "0", "w3": "1", "w2": "2"}

_PATTERN = "re:"
"""Before what ``ignore`` must hold as a regular expression."""

Row = dict[str, Any]


def general(name: str) -> str:
    """A name with ``*`` for the numbers of blocks and experts."""
    return _NUMBER.sub("*", name)


def row(seen: Seen) -> Row:
    """What the table says of an architecture.

    Returns:
        ``class``, ``fused``, ``spelled``, ``never``, ``experts``, ``head`` and ``embedding`` as
        the table has them, and
        ``unmet``: prefixes of linears that nothing on disk is loaded into; and ``lost``: weights
        on disk that are loaded into nothing.
    """
    parts = _parts(seen)
    fused: dict[str, list[str]] = {}
    spelled: dict[str, list[str]] = {}
    for prefix, names in parts.items():
        kind = seen.asked[prefix]
        respelled = _spelled(seen, prefix, names) if kind == "linear" else {}
        if kind == "experts":
            respelled = _spelled_experts(seen, prefix, names)
        for name, others in respelled.items():
            _add(spelled, general(name), [_related(other, name, seen.blocks) for other in others])
        if kind == "experts" or len(names) > 1:
            _add(fused, general(prefix), list(map(general, names)))
    reached = {prefix for prefix, _, _, _ in seen.landed.values()} | set(parts)
    unmet = {prefix for prefix, kind in seen.asked.items() if kind != "other"} - reached
    return {
        "class": seen.model_class,
        "fused": fused,
        "spelled": spelled,
        "never": sorted({general(name) for name in _never(seen)}),
        "experts": _experts(seen, parts),
        "head": _head(seen),
        "embedding": _embedding(seen),
        "unmet": sorted({general(prefix) for prefix in unmet}),
        "lost": sorted({general(name) for name in seen.lost if name in seen.matrices}),
    }


def _parts(seen: Seen) -> dict[str, list[str]]:
    """The modules on disk that each linear and each mixture of vLLM's is made of."""
    found: dict[str, list[tuple[int, int, str]]] = {}
    for at, (name, (prefix, _, shard, _)) in enumerate(seen.landed.items()):
        if name.endswith(".weight") and seen.asked.get(prefix) == "linear":
            number = _SHARDS.get(shard, shard).partition("/")[0]
            place = (int(number) if number.isdigit() else 0, at)
            found.setdefault(prefix, []).append((*place, name.removesuffix(".weight")))
        elif name.endswith(".weight") and seen.asked.get(prefix) == "experts":
            found.setdefault(prefix, []).append((0, at, name.removesuffix(".weight")))
    parts = {prefix: [name for *_, name in sorted(names)] for prefix, names in found.items()}
    for module in seen.stacked:
        if (prefix := _asked_for(seen, module)) and seen.split_names:
            parts[prefix] = [
                f"{experts_module(module)}.0.{name}" for names in seen.split_names for name in names
            ]
    return parts


def _asked_for(seen: Seen, module: str) -> str | None:
    """The prefix of the experts that a module's stacked tensors are."""
    for name in seen.stacked[module]:
        if name in seen.landed and seen.asked.get(seen.landed[name][0]) == "experts":
            return seen.landed[name][0]
    experts = experts_module(module)
    return experts if seen.asked.get(experts) == "experts" else None


def _spelled(seen: Seen, prefix: str, names: list[str]) -> dict[str, list[str]]:
    """What ``ignore`` must hold for a linear to stay exact, where its names on disk do not do."""
    if seen.ignores(prefix, names):
        return {}
    last = prefix.rpartition(".")[2]
    asked = [f"{prefix.removesuffix(last)}{part}" for part in seen.packed.get(last, [last])]
    if not prefix:
        raise ValueError(f"vLLM has no name for {', '.join(names)}")
    if not seen.ignores(prefix, names + asked):
        # What ignore holds is renamed as tensors are, but for patterns.
        return {name: [f"{_PATTERN}{each}" for each in asked] for name in names}
    ends = {name.rpartition(".")[2]: name for name in asked}
    own_ends = {name.rpartition(".")[2] for name in names}
    # Parts that a block has nothing for on disk, such as values that are the keys.
    missing = [each for end, each in ends.items() if end not in own_ends]
    found = {}
    for name in names:
        own = ends.get(name.rpartition(".")[2])
        spellings = ([own] if own else asked) + missing
        if others := [each for each in dict.fromkeys(spellings) if each != name]:
            found[name] = others
    return found


def _spelled_experts(seen: Seen, prefix: str, names: list[str]) -> dict[str, list[str]]:
    """The same for experts: vLLM looks for the linears of the first."""
    asked = [f"{prefix}.0.{name}" for name in seen.expert_linears[prefix] if name]
    found = {}
    first = [name for name in names if name.rpartition(".")[0].endswith(".0")]
    if not all(seen.ignores(name, first) for name in asked):
        for name in first:
            last = name.rpartition(".")[2]
            found[name] = [each for each in asked if each.endswith(f".{last}")] or asked
    if not all(seen.ignores(name, asked) for name in asked):
        found = {name: [f"{_PATTERN}{each}" for each in others] for name, others in found.items()}
    return found


def _never(seen: Seen) -> Iterable[str]:
    """Linears on disk that vLLM multiplies as they are, whatever the config says."""
    for name, (prefix, _, _, kind) in seen.landed.items():
        if name in seen.matrices and not prefix and "Embedding" not in kind:
            yield name.removesuffix(".weight")


def _head(seen: Seen) -> list[str]:
    """What a config names the head by, if vLLM asks whether it is quantized."""
    heads = [name for name in seen.asking if seen.landed[name][3] == "ParallelLMHead"]
    return _named(seen, heads[0]) if len(heads) == 1 and seen.landed[heads[0]][0] else []


def _embedding(seen: Seen) -> list[str]:
    """The same of the embedding of tokens, which some classes ask for by no name."""
    every = [name for name, (*_, kind) in seen.landed.items() if "Embedding" in kind]
    asking = [name for name in every if name in seen.asking]
    if len(asking) != 1:
        return []
    if seen.landed[asking[0]][0]:
        return _named(seen, asking[0])
    return ["Embedding"] if len(every) == 1 else []


def _named(seen: Seen, tensor: str) -> list[str]:
    """The module on disk, and what else is needed for vLLM to find it."""
    name, prefix = tensor.removesuffix(".weight"), seen.landed[tensor][0]
    if seen.ignores(prefix, [name]):
        return [name]
    # Names with dots are renamed as tensors are, but for patterns.
    return [name, prefix if seen.ignores(prefix, [prefix]) else f"{_PATTERN}{prefix}"]


def _experts(seen: Seen, parts: dict[str, list[str]]) -> dict[str, Any]:
    """How mixtures are called, by the module on disk that has the experts' numbers below it."""
    found: dict[str, Any] = {}
    for module, stacked in seen.stacked.items():
        if prefix := _asked_for(seen, module):
            found[general(experts_module(module))] = {
                "names": [list(names) for names in seen.split_names or ()],
                "stacked": sorted({general(name.removesuffix(".weight")) for name in stacked}),
                "ignored": _ignored(seen, prefix),
            }
    whole = {_asked_for(seen, module) for module in seen.stacked}
    for prefix, names in parts.items():
        if seen.asked[prefix] == "experts" and prefix not in whole:
            module = general(names[0].rpartition(".")[0].rpartition(".")[0])
            content = {"names": _by_parameter(seen, names), "ignored": _ignored(seen, prefix)}
            found.setdefault(module, content)
    return found


def _ignored(seen: Seen, prefix: str) -> list[str]:
    """What ``ignore`` holds for a mixture: vLLM looks for the linears of the first expert."""
    asked = [f"{prefix}.0.{name}" for name in seen.expert_linears[prefix] if name]
    mark = "" if all(seen.ignores(name, asked) for name in asked) else _PATTERN
    return [f"{mark}{general(prefix)}.0.{name.rpartition('.')[2]}" for name in asked]


def _by_parameter(seen: Seen, names: list[str]) -> list[list[str]]:
    """The linears of an expert, by the parameter of vLLM's that they are loaded into."""
    found: dict[str, list[str]] = {}
    for name in names:
        _, parameter, _, _ = seen.landed[f"{name}.weight"]
        of_parameter = found.setdefault(parameter, [])
        if (last := name.rpartition(".")[2]) not in of_parameter:
            of_parameter.append(last)
    order = sorted(found, key=lambda parameter: "w2" in parameter)
    return [sorted(found[parameter]) for parameter in order]


def _related(other: str, name: str, blocks: int) -> str:
    """A general name for a name whose numbers come from those of another.

    Returns:
        ``*`` for a number that is the same, ``#`` for one that counts on from the last block.

    Raises:
        ValueError: A number is neither.
    """
    numbers = iter(_NUMBER.findall(name))

    def mark(match: re.Match[str]) -> str:
        number = int(next(numbers, "-1"))
        if int(match[0]) == number:
            return "*"
        if int(match[0]) == number + blocks:
            return "#"
        raise ValueError(f"the numbers of {other} are not those of {name}")

    return _NUMBER.sub(mark, other)


def _add(table: dict[str, list[str]], name: str, others: list[str]) -> None:
    """Adds general names: what holds of any block holds of all."""
    known = table.setdefault(name, [])
    known += [other for other in dict.fromkeys(others) if other not in known]
