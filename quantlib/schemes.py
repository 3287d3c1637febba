"""How weights and activations are represented, by names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from quantlib.errors import did_you_mean
from quantlib.grids import Inputs, NumberType, number_types
from quantlib.section import Section

WeightType = str
"""A type of numbers, by the name that :data:`quantlib.grids.number_types` has for it."""

ScaleType = Literal["model", "e4m3", "e8m0"]

Activations = str
"""What the inputs of quantized linears are rounded to when the model is served: a name of
``ACTIVATIONS``, or none."""

EXACT_INPUTS = "none"
Value = TypeVar("Value")


class _Open(Mapping[str, Value]):
    """What ships, and what types of numbers of other packages bring.

    Raises:
        ValueError: When it is first looked into, if a package brings a name that is there.
    """

    def __init__(
        self,
        shipped: Mapping[str, Value],
        brought: Callable[[type[NumberType]], Mapping[str, Value]],
    ) -> None:
        self._shipped, self._brought = shipped, brought
        self._known: tuple[tuple[str, ...], dict[str, Value]] = ((), {})

    def _all(self) -> dict[str, Value]:
        names = number_types.names()
        if self._known[0] != names:
            known = dict(self._shipped)
            for name in names:
                added = self._brought(number_types.get(name))
                if twice := known.keys() & added.keys():
                    raise ValueError(f"{min(twice)}, which {name} brings, is known already")
                known |= added
            self._known = names, known
        return self._known[1]

    def __getitem__(self, name: str) -> Value:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def _row(kind: str, bits: int, group_size: int = -1, scale: str = "model") -> dict[str, Any]:
    return {"type": kind, "bits": bits, "group_size": group_size, "scale": scale}


_PER_TOKEN = "one dynamic scale per token"

ACTIVATIONS: Mapping[str, Inputs] = _Open(
    {
        "int8": Inputs(f"int8, {_PER_TOKEN}", _row("int", 8)),
        "int8-static": Inputs("int8, one scale per linear", _row("int", 8), static=True),
        "fp8": Inputs(f"FP8, {_PER_TOKEN}", _row("float", 8)),
        "fp8-static": Inputs("FP8, one scale per linear", _row("float", 8), static=True),
        "fp8-group": Inputs(f"FP8, {_PER_TOKEN} and 128 channels", _row("float", 8, 128)),
        "nvfp4": Inputs(
            f"NVFP4, {_PER_TOKEN} and 16 channels", _row("float", 4, 16, "e4m3"), static=True
        ),
        "mxfp4": Inputs(f"MXFP4, {_PER_TOKEN} and 32 channels", _row("float", 4, 32, "e8m0")),
        "mxfp8": Inputs(f"MXFP8, {_PER_TOKEN} and 32 channels", _row("float", 8, 32, "e8m0")),
    },
    lambda numbers: numbers.inputs,
)
"""What the inputs of quantized linears can be rounded to, by the names of recipes."""


def is_static(activations: Activations) -> bool:
    """Whether inputs are rounded by a number of each linear that is found in calibration."""
    return activations != EXACT_INPUTS and ACTIVATIONS[activations].static


def checked_activations(name: str) -> str:
    """A name of what inputs are rounded to.

    Raises:
        ValueError: It is none.
    """
    return _known_name(name, (EXACT_INPUTS, *ACTIVATIONS), "no kind of activations")


def _known_name(name: str, known: Iterable[str], what: str) -> str:
    """The name, if it is known; else raises a ValueError that says what it may stand for."""
    names = tuple(known)
    if name in names:
        return name
    meant = did_you_mean(name, names)
    raise ValueError(f"is {what}; {meant}{' ' if meant else ''}known: {', '.join(names)}")


KVCache = Literal["none", "fp8", "fp8-head"]
"""What keys and values are rounded to where they are kept when the model is served."""

GroupSize = int | Literal["auto"]


def auto_channel_or_positive(value: object, handler: ValidatorFunctionWrapHandler) -> GroupSize:
    """A size of groups, with one fault for what is none, not one of each type that it may have."""
    size: GroupSize
    try:
        size = handler(value)
    except ValidationError:
        size = 0
    if size != "auto" and size != -1 and size < 1:
        raise ValueError("must be auto, -1 (per channel) or a positive number of columns")
    return size


class AskedWeights(Section):
    """How a weight's numbers are represented."""

    type: Annotated[
        WeightType,
        Field(
            description="int: whole numbers. float: floating point numbers, FP8 E4M3 or FP4 E2M1. "
            "Or a type that another package adds."
        ),
    ] = "int"
    bits: Annotated[int, Field(ge=2, le=8, description="Bits of a code.")] = 4
    group_size: Annotated[
        GroupSize,
        Field(
            description="Input columns that share a scale; -1 for one scale per output channel. "
            "auto: the largest of 128, 64 and 32 that divides the inputs of all linears."
        ),
    ] = "auto"
    symmetric: Annotated[
        bool, Field(description="Codes centred on zero (true), or a zero point per group (false).")
    ] = True
    scale: Annotated[
        ScaleType,
        Field(
            description="What scales are: model: numbers of the model's dtype; e4m3: FP8 numbers, "
            "under one number for the whole linear (NVFP4); e8m0: powers of two (MXFP4, MXFP8)."
        ),
    ] = "model"
    block_rows: Annotated[
        int,
        Field(
            description="Output channels that share a scale; 128 in the blocks of FP8; -1 for all "
            "of them, those of all linears that share an input."
        ),
    ] = 1

    @field_validator("block_rows")
    @classmethod
    def _all_or_positive(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("must be -1 (all) or a positive number of output channels")
        return value

    _check_size = field_validator("group_size", mode="wrap")(auto_channel_or_positive)

    @field_validator("type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        return _known_name(value, number_types, "no type of numbers")


class WeightScheme(AskedWeights):
    """The same with the size of groups settled: a number."""

    group_size: int = 128

    @property
    def rows_share(self) -> bool:
        """Whether all rows of a weight have a number in common."""
        return self.scale == "e4m3" or self.block_rows == -1

    def scale_rows(self, rows: int) -> int:
        """Rows of scales that a weight with so many rows has."""
        return 1 if self.block_rows == -1 else -(-rows // self.block_rows)


class LinearScheme(Section):
    """How one linear is represented: its weights, and what its inputs are rounded to."""

    weights: WeightScheme
    activations: Activations = EXACT_INPUTS

    _check_activations = field_validator("activations")(checked_activations)

    @property
    def name(self) -> str:
        """What it is called, without the size of its groups."""
        return name_of(self.weights, self.activations)

    @property
    def is_static(self) -> bool:
        """Whether inputs are rounded by a number that is found in calibration."""
        return is_static(self.activations)

    @property
    def words(self) -> str:
        """Its name, and the size of groups where that is open: ``W4A16 in groups of 64``."""
        open_size = "group_size" not in SCHEMES.get(self.name, {}).get("weights", {"group_size": 0})
        size = self.weights.group_size
        if not open_size:
            return self.name
        name = self.name if self.weights.symmetric else f"{self.name}_ASYM"
        return f"{name} per channel" if size == -1 else f"{name} in groups of {size}"


class CacheScheme(Section):
    """How attention keeps keys and values in FP8, with scales from calibration.

    Attributes:
        per_head: Whether every head has scales of its own; else each layer.
        queries: Whether queries are rounded, too, as attention in FP8 takes them.
    """

    per_head: bool = False
    queries: bool = False

    @property
    def words(self) -> str:
        """``FP8 with a scale per head, queries too``."""
        each = "head" if self.per_head else "layer"
        return f"FP8 with a scale per {each}{', queries too' if self.queries else ''}"


_PLAIN = {"symmetric": True, "scale": "model", "block_rows": 1}


def _weights(kind: str, bits: int, **more: Any) -> dict[str, Any]:
    return {"type": kind, "bits": bits, **_PLAIN, **more}


_NVFP4 = _weights("float", 4, group_size=16, scale="e4m3")
_MXFP4 = _weights("float", 4, group_size=32, scale="e8m0")
_MXFP8 = _weights("float", 8, group_size=32, scale="e8m0")
_FP8_BLOCK = _weights("float", 8, group_size=128, block_rows=128)
_FP8_TENSOR = _weights("float", 8, group_size=-1, block_rows=-1)

SHIPPED: Mapping[str, Mapping[str, Any]] = {
    "W2A16": {"weights": _weights("int", 2), "activations": "none"},
    "W4A16": {"weights": _weights("int", 4), "activations": "none"},
    "W4A16_ASYM": {"weights": _weights("int", 4, symmetric=False), "activations": "none"},
    "W8A16": {"weights": _weights("int", 8), "activations": "none"},
    "W8A8": {"weights": _weights("int", 8, group_size=-1), "activations": "int8"},
    "W4A8": {"weights": _weights("int", 4), "activations": "int8"},
    "W4AFP8": {"weights": _weights("int", 4, group_size=128), "activations": "fp8"},
    "FP8": {"weights": _FP8_TENSOR, "activations": "fp8-static"},
    "FP8_DYNAMIC": {"weights": _weights("float", 8, group_size=-1), "activations": "fp8"},
    "FP8_STATIC": {"weights": _weights("float", 8, group_size=-1), "activations": "fp8-static"},
    "FP8_BLOCK": {"weights": _FP8_BLOCK, "activations": "fp8-group"},
    "NVFP4": {"weights": _NVFP4, "activations": "nvfp4"},
    "NVFP4A16": {"weights": _NVFP4, "activations": "none"},
    "MXFP4A16": {"weights": _MXFP4, "activations": "none"},
    "MXFP4": {"weights": _MXFP4, "activations": "mxfp4"},
    "MXFP8": {"weights": _MXFP8, "activations": "mxfp8"},
}


def _brought(numbers: type[NumberType]) -> dict[str, Mapping[str, Any]]:
    """The schemes of a type of numbers, with the fields that they leave out."""
    return {
        name: {"activations": EXACT_INPUTS, **scheme, "weights": {**_PLAIN, **scheme["weights"]}}
        for name, scheme in numbers.schemes.items()
    }


SCHEMES: Mapping[str, Mapping[str, Any]] = _Open(SHIPPED, _brought)
"""Parts of a recipe's section ``quantization``, by the names that compressed-tensors has for it."""


def name_of(weights: AskedWeights, activations: str) -> str:
    """What a scheme is called; of whole numbers, by the bits of weights and activations."""
    if weights.type != "int":
        own = weights.model_dump(include=set(_NVFP4))
        for name, scheme in SCHEMES.items():
            if scheme["weights"] == own and scheme["activations"] == activations:
                return name
    inputs = {"none": "16", "fp8": "FP8"}.get(activations, "8")
    return f"W{weights.bits}A{inputs}"


def checked_scheme(name: str, *others: str) -> str:
    """A name of a scheme.

    Args:
        name: What was given.
        others: What may stand in its place.

    Raises:
        ValueError: It is none.
    """
    return _known_name(name, (*SCHEMES, *others), "no scheme")
