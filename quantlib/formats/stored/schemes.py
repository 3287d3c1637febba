"""What a compressed-tensors config says of each module: its groups, targets and exceptions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantlib.formats.stored.faults import Faults, Settings, is_inert, shown

_KNOWN = (
    "config_groups",
    "format",
    "global_compression_ratio",
    "ignore",
    "kv_cache_scheme",
    "quant_method",
    "quantization_status",
    "run_compressed",
    "sparsity_config",
    "version",
)
_OF_GROUPS = ("format", "input_activations", "output_activations", "targets", "weights")
_OF_WEIGHTS = (
    "actorder",
    "block_structure",
    "dynamic",
    "group_size",
    "num_bits",
    "observer",
    "observer_kwargs",
    "scale_dtype",
    "strategy",
    "symmetric",
    "type",
    "zp_dtype",
)
_MIXED = "mixed-precision"
INTEGER_PACKED = "pack-quantized"
WHOLE = ("int-quantized", "float-quantized", "naive-quantized")
FP4 = {"nvfp4-pack-quantized": 16, "mxfp4-pack-quantized": 32}
"""The formats of FP4, and how many columns share a scale in each."""

MXFP8 = "mxfp8-quantized"
LAYOUTS = (INTEGER_PACKED, *WHOLE, *FP4, MXFP8)
_CLASSES = ("Linear", "LinearBase")
_STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")


@dataclass(frozen=True)
class GroupScheme:
    """How the weights of a group of modules are stored.

    Attributes:
        layout: The format: ``pack-quantized``.
        type: int or float.
        bits: Of a code.
        symmetric: Whether there are no zero points.
        strategy: tensor, channel, group, block or tensor_group.
        group_size: Columns that share a scale, where the strategy has groups.
        block: Rows and columns that share one, where it is block.
        ordered: Whether a group index says which column is of which group.
        activations: What is said of the inputs; None where they are not rounded.
    """

    layout: str
    type: str
    bits: int
    symmetric: bool
    strategy: str
    group_size: int | None
    block: tuple[int, int] | None
    ordered: bool
    activations: Mapping[str, Any] | None

    @property
    def words(self) -> str:
        """The scheme in a few words: ``pack-quantized INT4 group 128``."""
        kind = {"int": "INT", "float": "FP"}[self.type]
        if self.block is not None:
            shared = f"block {self.block[0]}x{self.block[1]}"
        elif self.group_size is not None:
            shared = f"group {self.group_size}"
        else:
            shared = f"per {self.strategy}"
        by = ", by importance" if self.ordered else ""
        zeros = "" if self.symmetric else " asymmetric"
        return f"{self.layout} {kind}{self.bits}{zeros} {shared}{by}"

    @property
    def cpu_problem(self) -> str | None:
        """Why vLLM does not serve it on a CPU; None where it was seen to."""
        rounded = self.activations
        if self.layout == INTEGER_PACKED and self.bits == 4 and not self.ordered:
            served = self.strategy in ("group", "channel")
        elif self.layout in ("int-quantized", "float-quantized") and rounded is not None:
            served = self.bits == 8 and self.strategy == "channel" and self.symmetric
            if self.type == "float":
                served = served and bool(rounded.get("dynamic"))
        else:
            served = False
        return None if served else f"it was not seen to serve {self.words} there"


class Schemes:
    """The groups of a config, and which modules they are for.

    Attributes:
        ignored: The modules to leave out, as the config has them.
    """

    def __init__(self, given: Mapping[str, Any], faults: Faults) -> None:
        settings = Settings(given, faults)
        settings.refuse_unknown(_KNOWN)
        # Old checkpoints call their status frozen, and lie there compressed all the same.
        settings.choice("quantization_status", ("compressed", "frozen"), "compressed")
        sparse = given.get("sparsity_config")
        if not is_inert(sparse) and not _is_dense(sparse):
            settings.fault("sparsity_config", "sparse weights are not read")
        overall = settings.choice("format", (*LAYOUTS, _MIXED, "dense"))
        self.ignored = _patterns(settings, "ignore")
        self._targets: list[tuple[str, GroupScheme | None]] = []
        groups = given.get("config_groups")
        if groups == {} and given.get("kv_cache_scheme"):
            return  # all weights are exact
        if not isinstance(groups, Mapping) or not groups:
            settings.fault("config_groups", "is no mapping of groups, or names none")
            return
        for name, group in groups.items():
            path = f"config_groups.{name}."
            if not isinstance(group, Mapping):
                settings.fault(f"config_groups.{name}", f"{shown(group)} is no mapping of settings")
                continue
            within = Settings(group, faults, path)
            within.refuse_unknown(_OF_GROUPS)
            scheme = _scheme(within, overall, faults, path)
            self._targets += [(target, scheme) for target in _patterns(within, "targets")]

    def scheme(self, module: str) -> GroupScheme | None:
        """The scheme of a module; a full name goes before a pattern, and that before a class.

        None where no target fits, or the one that does is of a group that says nothing of weights.
        """
        ordered = sorted(self._targets, key=lambda each: ("re:" in each[0], each[0]))
        for fits in (_is_name, _is_class):
            for target, scheme in ordered:
                if fits(target, module):
                    return scheme
        return None

    def is_ignored(self, module: str) -> bool:
        """Whether the config leaves a module out."""
        return any(_is_name(pattern, module) for pattern in self.ignored)


def _is_dense(sparsity: object) -> bool:
    return isinstance(sparsity, Mapping) and sparsity.get("format") == "dense"


def _is_name(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target == module


def _is_class(target: str, module: str) -> bool:
    # Headers know no classes: what is quantized is a linear, unless its name is an embedding's.
    embedding = module.rpartition(".")[2].startswith("embed")
    return target == "Embedding" if embedding else target in _CLASSES


def _patterns(settings: Settings, field: str) -> tuple[str, ...]:
    found = []
    for name in settings.names(field):
        try:
            re.compile(name.removeprefix("re:"))
            found.append(name)
        except re.error as error:
            if not name.startswith("re:"):
                found.append(name)
                continue
            settings.fault(field, f"{shown(name)} is no regular expression: {error}")
    return tuple(found)


def _scheme(settings: Settings, overall: str, faults: Faults, path: str) -> GroupScheme | None:
    weights, activations = settings.given.get("weights"), settings.given.get("input_activations")
    if weights is None:
        return None
    if not isinstance(weights, Mapping):
        settings.fault("weights", f"{shown(weights)} is no mapping of settings")
        return None
    layout = settings.choice("format", LAYOUTS, None if overall == _MIXED else overall)
    within = Settings(weights, faults, f"{path}weights.")
    within.refuse_unknown(_OF_WEIGHTS)
    kind = within.choice("type", ("int", "float"), "int")
    bits = within.choice("num_bits", (8, 4) if kind == "float" else (2, 3, 4, 5, 6, 7, 8), 8)
    if not is_inert(weights.get("dynamic")):
        within.fault("dynamic", "weights with dynamic scales have none to read")
    strategy = within.choice("strategy", _STRATEGIES, _implied(weights.get("group_size")))
    size = within.group_size() if strategy in ("group", "tensor_group") else None
    if size == -1:
        within.fault("group_size", f"-1 does not go with the strategy {strategy}")
        size = None
    symmetric = within.flag("symmetric", True)
    if kind == "float" and not symmetric:
        within.fault("symmetric", "floating point codes with zero points are not read")
    if (kind, bits) != _expected(layout, kind, bits):
        within.fault("num_bits", f"{layout} does not hold {kind} of {bits} bits")
    needed = FP4.get(layout, 32 if layout == MXFP8 else None)
    if needed is not None and size != needed:
        within.fault("group_size", f"{shown(size)} does not go with {layout}, which has {needed}")
    return GroupScheme(
        layout=layout,
        type=kind,
        bits=bits,
        symmetric=symmetric,
        strategy=strategy,
        group_size=size,
        block=_block(within) if strategy == "block" else None,
        ordered=weights.get("actorder") in ("group", "dynamic", True),
        activations=activations if isinstance(activations, Mapping) else None,
    )


def _implied(group_size: object) -> str:
    """The strategy that a group size stands for where none is named."""
    if group_size is None:
        return "tensor"
    return "channel" if group_size == -1 else "group"


def _expected(layout: str, kind: str, bits: int) -> tuple[str, int]:
    """The type and the bits that a layout asks for; those given where it takes them."""
    if layout == INTEGER_PACKED:
        return "int", bits
    if layout in FP4:
        return "float", 4
    if layout in ("float-quantized", MXFP8) or kind == "float":
        return "float", 8
    return "int", bits


def _block(settings: Settings) -> tuple[int, int] | None:
    match settings.given.get("block_structure"):
        case [int(high), int(wide)] if high > 0 and wide > 0:
            return high, wide
        case str(text) if re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", text):
            high, wide = map(int, text.split("x"))
            return high, wide
        case other:
            settings.fault("block_structure", f"{shown(other)} is no two positive numbers")
            return None
