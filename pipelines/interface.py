"""What each step takes and gives, as its component says it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from quantlib.runtime.distribution import needing

_KINDS: dict[str, type] = {"String": str, "Integer": int, "List": list, "Dict": dict}


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a step.

    Attributes:
        parameters: Types of the input parameters.
        artifacts: Names of the input artifacts.
        returns: Types of the output parameters.
        makes: Types of the output artifacts, such as ``system.HTML``.
    """

    parameters: Mapping[str, type]
    artifacts: tuple[str, ...]
    returns: Mapping[str, type]
    makes: Mapping[str, str]


@cache
def interface_of(step: str) -> Interface:
    """The interface of a step of ours."""
    specification = component_of(step).component_spec
    inputs, outputs = specification.inputs or {}, specification.outputs or {}
    return Interface(
        {name: _kind(spec.type) for name, spec in inputs.items() if "@" not in spec.type},
        tuple(name for name, spec in inputs.items() if "@" in spec.type),
        {name: _kind(spec.type) for name, spec in outputs.items() if "@" not in spec.type},
        {name: spec.type.partition("@")[0] for name, spec in outputs.items() if "@" in spec.type},
    )


def component_of(step: str):  # type: ignore[no-untyped-def]  # kfp's, which has no types
    """The kfp component of a step.

    Raises:
        QuantlibError: kfp is not installed.
    """
    with needing("pipelines", "kfp"):
        return getattr(importlib.import_module(f"components.{step}.component"), step)


def _kind(name: str) -> type:
    return _KINDS[name.partition("[")[0]]
