"""AWQ and GPTQ checkpoints: codes in words of 32 bits, ``[in_features, out_features]``.

Their tensors are listed in :mod:`quantlib.formats.awq` and :mod:`quantlib.formats.gptq`, which
parse them. Neither library that made these formats comes with transformers; computed is what
theirs compute: a code less its zero point, times its scale, rounded to the dtype of the scales.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError
from quantlib.formats.stored.faults import Faults, Settings, is_named, part_problem, shown
from quantlib.formats.stored.found import FLOATS, Found, by_module, joined
from quantlib.formats.stored.weights import ROW_STEP, StoredWeight, read_whole
from quantlib.schemes import WeightScheme

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.numbers.quantized import QuantizedLinear

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_AWQ_KNOWN = (
    "backend", "bits", "do_fuse", "exllama_config", "fuse_max_seq_len", "group_size", "lm_head",
    "modules_to_fuse", "modules_to_not_convert", "quant_method", "sym", "version", "zero_point",
)  # fmt: skip
_GPTQ_KNOWN = (
    "act_group_aware", "backend", "batch_size", "bits", "block_name_to_quantize",
    "cache_block_outputs", "checkpoint_format", "damp_auto_increment", "damp_percent", "dataset",
    "desc_act", "disable_exllama", "dynamic", "exllama_config", "format", "group_size", "hyb_act",
    "lm_head", "max_input_length", "meta", "method", "model_file_base_name", "model_name_or_path",
    "model_seqlen", "module_name_preceding_first_block", "modules_in_block_to_quantize", "mse",
    "pack_dtype", "pad_token_id", "quant_method", "static_groups", "sym", "tokenizer",
    "true_sequential", "use_cuda_fp16", "use_exllama",
)  # fmt: skip
_OF_TUNING = (
    "amp", "autoround_version", "data_type", "enable_minmax_tuning", "enable_norm_bias_tuning",
    "enable_quanted_input", "gradient_accumulate_steps", "iters", "low_gpu_mem_usage", "lr",
    "minmax_lr", "nsamples", "not_use_best_mse", "provider", "scale_dtype", "seqlen", "seed",
)  # fmt: skip
"""What AutoRound adds to a config in GPTQ's format."""

_GPTQ_BITS = (2, 3, 4, 8)
_CPU_GROUPS = (-1, 32, 64, 128)


@dataclass(frozen=True)
class PackedWeight(StoredWeight):
    """Codes that lie transposed: all of a linear's are read for any of its rows.

    Parts: ``qweight``, ``qzeros``, ``scales`` and, of some in GPTQ's format, ``g_idx``.

    Attributes:
        scheme: Bits and group size; asymmetric, so that the stored zero points count.
    """

    scheme: WeightScheme

    def pieces(self, source: FileSource, first: int, last: int) -> Iterator[Tensor]:
        """The rows from ``first`` to before ``last``."""
        parts = {name: read_whole(source, info) for name, info in self.parts.items()}
        self.check(parts)
        library = parts["scales"].dtype
        for start, stop in self.steps(first, last):
            begin = start // ROW_STEP * ROW_STEP
            end = min(-(-stop // ROW_STEP) * ROW_STEP, self.shape[0])
            words = {name: self.cut(name, part, begin, end) for name, part in parts.items()}
            rows = self.finished(self.parse(words), library)
            yield rows[start - begin : stop - begin]

    def codes(self, source: FileSource) -> QuantizedLinear:
        """The whole weight as codes."""
        parts = {name: read_whole(source, info) for name, info in self.parts.items()}
        self.check(parts)
        return self.parse(parts)

    def check(self, parts: Mapping[str, Tensor]) -> None:
        """Refuses what no header can tell.

        Raises:
            InvalidInputError: The group index leads beyond the groups.
        """
        if "g_idx" not in parts:
            return
        groups, index = parts["scales"].shape[0], parts["g_idx"]
        if int(index.min()) < 0 or int(index.max()) >= groups:
            raise InvalidInputError.one(
                self.parts["g_idx"].name, f"names groups outside of the {groups} that there are"
            )

    def cut(self, name: str, part: Tensor, begin: int, end: int) -> Tensor:
        """What of a part belongs to some rows of the weight, whole words of them."""
        if name == "g_idx":
            return part
        width = part.shape[1]
        return part[:, begin * width // self.shape[0] : end * width // self.shape[0]]

    @abstractmethod
    def parse(self, parts: Mapping[str, Tensor]) -> QuantizedLinear:
        """What some parts hold."""


@dataclass(frozen=True)
class AwqWeight(PackedWeight):
    """A linear in AWQ's gemm layout."""

    def parse(self, parts: Mapping[str, Tensor]) -> QuantizedLinear:
        """What some parts hold."""
        from quantlib.formats.awq import AWQFormat

        return AWQFormat().parse(parts, self.scheme)


@dataclass(frozen=True)
class GptqWeight(PackedWeight):
    """A linear in GPTQ's layout.

    Attributes:
        less: What zero points are stored less by: 1 in version 1, 0 in version 2.
    """

    less: int

    def parse(self, parts: Mapping[str, Tensor]) -> QuantizedLinear:
        """What some parts hold."""
        from quantlib.formats.gptq import GPTQFormat

        return GPTQFormat().parse(parts, self.scheme, self.less)


def read_awq(checkpoint: Checkpoint, given: Mapping[str, Any], dtype: str, faults: Faults) -> Found:
    """Finds the linears of an AWQ checkpoint."""
    settings = Settings(given, faults)
    settings.refuse_unknown(_AWQ_KNOWN)
    settings.choice("version", ("gemm",), "gemm")
    settings.flag("zero_point", True)
    bits = settings.choice("bits", (4,))
    size = settings.group_size()
    plain = settings.names("modules_to_not_convert")
    found, per_word = Found(words=f"AWQ INT{bits} {grouping(size)}"), 32 // bits
    scheme = WeightScheme(bits=bits, group_size=size, symmetric=False)
    if faults:
        return found
    for module, parts in by_module(checkpoint.tensors, _PARTS[:3]).items():
        codes = _whole(module, parts, _PARTS[:3], checkpoint, plain, faults)
        if codes is None:
            continue
        columns, rows = codes.shape[0], codes.shape[1] * per_word
        groups = _groups(codes, columns, size, faults)
        if groups is None or _misfit(parts, groups, (groups, codes.shape[1]), rows, faults):
            continue
        found.add(AwqWeight(f"{module}.weight", (rows, columns), dtype, parts, scheme))
    if size not in _CPU_GROUPS[1:]:
        found.cpu_problem = f"it serves no AWQ there in {grouping(size)}"
    return found


def read_gptq(
    checkpoint: Checkpoint, given: Mapping[str, Any], dtype: str, faults: Faults
) -> Found:
    """Finds the linears of a GPTQ checkpoint, of version 1 or 2."""
    settings = Settings(given, faults)
    settings.refuse_unknown((*_GPTQ_KNOWN, *_OF_TUNING))
    layouts = [
        settings.choice(field, ("gptq", "gptq_v2"), "gptq")
        for field in ("checkpoint_format", "format")
        if given.get(field) is not None
    ]
    if len(set(layouts)) > 1:
        settings.fault("format", f"{layouts[1]} is not checkpoint_format, {layouts[0]}")
    less = 0 if "gptq_v2" in layouts else 1
    settings.choice("pack_dtype", ("int32",), "int32")
    rules = _Rules(settings, faults)
    found, words, problems = Found(), [], []
    if faults:
        return found
    for module, parts in by_module(checkpoint.tensors, _PARTS).items():
        scheme = rules.scheme(module)
        codes = _whole(module, parts, _PARTS[:3], checkpoint, (), faults)
        if codes is None:
            continue
        if scheme is None:
            what = "is quantized, but a rule of the config (dynamic) leaves it out"
            faults.tensor("left out", codes.name, what)
            continue
        bits, size, ordered = scheme
        columns, rows = codes.shape[0] * 32 // bits, codes.shape[1]
        if codes.shape[0] * 32 % bits or codes.shape[0] % (bits if 32 % bits else 1):
            what = f"has {codes.shape[0]} rows of words, which hold no whole number of {bits} bits"
            faults.tensor("words", codes.name, what)
            continue
        groups = -(-columns // (columns if size == -1 else size))
        if rows * bits % 32:
            faults.tensor(
                "words", codes.name, f"its {rows} zero points of {bits} bits fill no words"
            )
            continue
        if _misfit(parts, groups, (groups, rows * bits // 32), rows, faults):
            continue
        index = parts.get("g_idx")
        if index is None and ordered:
            faults.tensor("no order", codes.name, f"the config says desc_act: no {module}.g_idx")
            continue
        why = f"{codes.name} has {columns} inputs"
        if index and part_problem(faults, index, ("I32", "I64"), (columns,), why):
            continue
        weights = WeightScheme(bits=bits, group_size=min(size, columns), symmetric=False)
        found.add(GptqWeight(f"{module}.weight", (rows, columns), dtype, parts, weights, less))
        words.append(f"INT{bits} {grouping(size)}{', by importance' if ordered else ''}")
        if bits != 4 or ordered or size not in _CPU_GROUPS or not rules.symmetric:
            problems.append(f"it serves no GPTQ there of {words[-1]}, or with such zero points")
    found.words = f"GPTQ {joined(words)}"
    found.cpu_problem = next(iter(problems), None)
    return found


class _Rules:
    """How each linear of a GPTQ checkpoint is quantized: by the config, and by its exceptions.

    ``dynamic`` maps patterns to other settings (``+:`` or nothing before them) or leaves linears
    out (``-:``); the first that matches the start of a name holds, as in GPTQModel.
    """

    def __init__(self, settings: Settings, faults: Faults) -> None:
        self._base = self._read(settings)
        self.symmetric = settings.flag("sym", True)
        self._rules: list[tuple[re.Pattern[str], tuple[int, int, bool] | None]] = []
        given = settings.given.get("dynamic") or {}
        if not isinstance(given, Mapping):
            settings.fault("dynamic", "is no mapping of patterns to settings")
            return
        for rule, other in given.items():
            left_out = rule.startswith("-:")
            try:
                pattern = re.compile(rule.removeprefix("-:").removeprefix("+:"))
            except re.error as error:
                settings.fault("dynamic", f"{shown(rule)} is no regular expression: {error}")
                continue
            if not isinstance(other, Mapping):
                settings.fault("dynamic", f"what {shown(rule)} says is no mapping")
                continue
            changed = Settings({**settings.given, **other}, faults, f"dynamic.{rule}.")
            self._rules.append((pattern, None if left_out else self._read(changed)))

    @staticmethod
    def _read(settings: Settings) -> tuple[int, int, bool]:
        bits = settings.choice("bits", _GPTQ_BITS)
        return bits, settings.group_size(), settings.flag("desc_act", False)

    def scheme(self, module: str) -> tuple[int, int, bool] | None:
        """Bits, group size and whether columns are ordered by importance; None if left out."""
        return next(
            (scheme for pattern, scheme in self._rules if pattern.match(module)), self._base
        )


def grouping(size: int) -> str:
    """What shares a scale, in words."""
    return "per channel" if size == -1 else f"group {size}"


def _whole(
    module: str,
    parts: Mapping[str, TensorInfo],
    needed: tuple[str, ...],
    checkpoint: Checkpoint,
    plain: tuple[str, ...],
    faults: Faults,
) -> TensorInfo | None:
    """The codes of a module that has all that it needs."""
    if missing := [part for part in needed if part not in parts]:
        what = f"holds {', '.join(sorted(parts))}, but no {' and no '.join(missing)}"
        faults.tensor("missing", module, what)
        return None
    codes = parts["qweight"]
    if f"{module}.weight" in checkpoint.tensors:
        faults.tensor("twice", f"{module}.weight", f"is there, and so is {codes.name}")
    elif is_named(module, plain):
        what = "is quantized, but the config names it among the modules that are not"
        faults.tensor("not converted", codes.name, what)
    elif len(codes.shape) != 2 or codes.elements == 0:
        faults.tensor("codes", codes.name, f"has shape {list(codes.shape)}: no matrix")
    elif not part_problem(faults, codes, ("I32",), codes.shape, "it is"):
        return codes
    return None


def _groups(codes: TensorInfo, columns: int, size: int, faults: Faults) -> int | None:
    if size == -1:
        return 1
    if columns % size:
        what = f"has {columns} inputs, which groups of {size} do not divide"
        faults.tensor("groups", codes.name, what)
        return None
    return columns // size


def _misfit(
    parts: Mapping[str, TensorInfo],
    groups: int,
    zeros: tuple[int, int],
    rows: int,
    faults: Faults,
) -> bool:
    why = f"{parts['qweight'].name} {list(parts['qweight'].shape)} and the config ask for"
    return any(
        [
            part_problem(faults, parts["scales"], FLOATS, (groups, rows), why),
            part_problem(faults, parts["qzeros"], ("I32",), zeros, why),
        ]
    )
