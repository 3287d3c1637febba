"""The rotary embedding's parameters in a config: reading and checking them, without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from quantlib.errors import Problem

_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": (),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": (
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "longrope": ("factor", "attention_factor"),
}
_ALWAYS = (
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "finetuned",
)
"""What any type may state; ``finetuned`` is a remark that nothing computes with."""
_NO_NUMBERS = frozenset(
    {"rope_type", "type", "rope_theta", "finetuned", "truncate", "short_factor", "long_factor"}
)
"""What is another kind of value, or checked by itself."""


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding's parameters, as transformers 5 or as earlier releases write them."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    parameters.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    parameters.setdefault("partial_rotary_factor", config.get("partial_rotary_factor"))
    parameters["rope_type"] = parameters.get("rope_type", parameters.get("type", "default"))
    return parameters


def rotated_channels(parameters: Mapping[str, Any], head_dim: int) -> int:
    """How many channels of a head are rotated: the first ones."""
    return int(head_dim * (parameters.get("partial_rotary_factor") or 1))


def rope_problems(
    parameters: Mapping[str, Any], types: Collection[str], *, partial: bool, head_dim: int | None
) -> list[Problem]:
    """What of a rotary embedding's parameters cannot be computed.

    Args:
        parameters: As :func:`rope_parameters` gives them.
        types: The types that the family uses.
        partial: Whether the family may rotate a part of each head only.
        head_dim: Channels of a head; None where it is not known.
    """
    kind = parameters["rope_type"]
    if kind not in types:
        problems = [
            Problem(
                "config.json: rope_type",
                f"{kind!r} is not supported",
                f"supported: {', '.join(types)}",
            )
        ]
    else:
        known = {*_ALWAYS, *_NEEDED[kind], *_OPTIONAL.get(kind, ())}
        problems = [
            Problem(f"config.json: rope_parameters.{field}", f"is missing; {kind} needs it")
            for field in _NEEDED[kind]
            if parameters.get(field) is None
        ]
        problems += [
            Problem(f"config.json: rope_parameters.{field}", f"is not known with {kind}")
            for field, value in parameters.items()
            if field not in known and value is not None
        ]
        problems += [
            Problem(f"config.json: rope_parameters.{field}", f"{parameters[field]!r} is no number")
            for field in sorted(known - _NO_NUMBERS)
            if not isinstance(parameters.get(field), (int, float, type(None)))
        ]
    theta = parameters["rope_theta"]
    if not isinstance(theta, (int, float)) or theta <= 0:
        problems.append(Problem("config.json: rope_theta", f"{theta!r} is no positive number"))
    factor = parameters.get("partial_rotary_factor")
    if factor not in (None, 1) and not partial:
        problems.append(Problem("config.json: partial_rotary_factor", f"{factor} is not supported"))
    elif head_dim is not None and isinstance(factor, (int, float, type(None))):
        problems += _width_problems(parameters, head_dim)
    return problems


def _width_problems(parameters: Mapping[str, Any], head_dim: int) -> list[Problem]:
    """Channels are rotated in pairs, and longrope states a factor for each pair."""
    width = rotated_channels(parameters, head_dim)
    if width % 2 or not 0 < width <= head_dim:
        return [
            Problem(
                "config.json: partial_rotary_factor",
                f"rotates {width} of a head's {head_dim} channels, which is no even part of them",
            )
        ]
    return [
        Problem(
            f"config.json: rope_parameters.{field}",
            f"has to list {width // 2} numbers, one for each pair of rotated channels",
        )
        for field in ("short_factor", "long_factor")
        if parameters.get(field) is not None and not _is_numbers(parameters[field], width // 2)
    ]


def _is_numbers(value: Any, length: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == length
        and all(isinstance(number, (int, float)) for number in value)
    )
