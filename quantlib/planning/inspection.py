"""What a model is made of, and what would become of it: from its config and headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.formats.stored import stored
from quantlib.models import BaseModelAdapter, open_checkpoint
from quantlib.models.fusion import vllm_serves, vllm_version
from quantlib.models.layout import ANY_EXPERT, without_expert
from quantlib.models.naming import OUTSIDE, outermost
from quantlib.planning.model import model_sizes
from quantlib.quantization import QuantizationSection
from quantlib.recipe import Recipe
from quantlib.schemes import WeightScheme

SCHEMES = {
    "W4, groups of 128": WeightScheme(bits=4, group_size=128),
    "W8, per channel": WeightScheme(bits=8, group_size=-1),
}
"""What sizes are shown for."""

_TEXT_ENDS = "embeds tokens, or gives the logits"


@dataclass(frozen=True)
class ReadTogether:
    """Linears that read the same tensor.

    Attributes:
        linears: Their names within the block, with ``*`` for the number of an expert.
        inputs: Input channels.
        outputs: Output channels of each.
        experts: How many experts have them; 0 outside of experts.
    """

    linears: tuple[str, ...]
    inputs: int
    outputs: tuple[int, ...]
    experts: int


@dataclass(frozen=True)
class KindOfBlock:
    """Blocks that are made alike.

    Attributes:
        blocks: Which they are, as ``0-2, 5``.
        count: How many.
        parameters: Numbers in one of them.
        inputs: What would be quantized, by shared input.
        exact: What would not, and why.
    """

    blocks: str
    count: int
    parameters: int
    inputs: tuple[ReadTogether, ...]
    exact: dict[str, str]


@dataclass(frozen=True)
class Part:
    """What lies outside of the blocks.

    Attributes:
        name: A module.
        tensors: How many it has.
        parameters: Numbers in them.
        why: Why it stays exact.
    """

    name: str
    tensors: int
    parameters: int
    why: str


@dataclass(frozen=True)
class Vllm:
    """What vLLM makes of the model.

    Attributes:
        version: The vLLM that was asked, which is the one that quantlib is pinned to.
        served_by: Its class for the model; one that begins with ``Transformers`` computes the
            modules of transformers. None where it is not known to have one.
        fused: Which linears on disk it computes as one, by the name of the one.
        spelled: What it calls linears that stay exact, by name on disk, where that differs.
    """

    version: str
    served_by: str | None
    fused: dict[str, tuple[str, ...]]
    spelled: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Inspection:
    """A model as its headers show it.

    Attributes:
        architecture: As its config names it.
        model_type: The same.
        walked: Whether text can be run through its blocks; methods without text always work.
        obstacles: Why not.
        stored: How it lies quantized, in words; None where it does not.
        parameters: Numbers in all tensors.
        bytes: Of all tensors, as they are stored.
        blocks: How many blocks there are.
        kinds: What they are made of.
        outside: What lies outside of them.
        quantized_parameters: Numbers that would be quantized, all linears of all blocks.
        sizes: About the bytes of the quantized checkpoint, by scheme.
        vllm: What vLLM makes of it.
    """

    architecture: str
    model_type: str
    walked: bool
    obstacles: tuple[str, ...]
    stored: str | None
    parameters: int
    bytes: int
    blocks: int
    kinds: tuple[KindOfBlock, ...]
    outside: tuple[Part, ...]
    quantized_parameters: int
    sizes: dict[str, int] = field(default_factory=dict)
    vllm: Vllm | None = None


def inspect_model(raw: Checkpoint) -> Inspection:
    """Looks at a model; no weight is read, and where scales could be folded is not tried.

    Args:
        raw: Its config and headers, as they lie.

    Raises:
        InvalidInputError: It is not whole, is quantized in a way that is not read, or shows no
            blocks.
    """
    found = stored(raw)
    checkpoint, adapter = open_checkpoint(raw, folds=False)
    layout = adapter.layout
    return Inspection(
        architecture=layout.architecture,
        model_type=str(checkpoint.config.get("model_type")),
        walked=not layout.obstacles,
        obstacles=tuple(f"{each.where}: {each.what}" for each in layout.obstacles),
        stored=None if found is None else found.words,
        parameters=sum(info.elements for info in checkpoint.tensors.values()),
        bytes=sum(info.bytes for info in raw.tensors.values()),
        blocks=layout.blocks,
        kinds=tuple(_kinds(checkpoint, adapter)),
        outside=tuple(_outside(checkpoint, adapter)),
        quantized_parameters=sum(_quantized(adapter)),
        sizes={name: _bytes_in(scheme, checkpoint, adapter) for name, scheme in SCHEMES.items()},
        vllm=_vllm(adapter),
    )


def _kinds(checkpoint: Checkpoint, adapter: BaseModelAdapter) -> Iterator[KindOfBlock]:
    kind_of = adapter.layout.kind_of
    for number in dict.fromkeys(kind_of):
        blocks = [block for block, kind in enumerate(kind_of) if kind == number]
        first = blocks[0]
        inputs = []
        for shared in adapter.inputs(first):
            if not shared.expert:  # None, or the first of all
                shapes = [adapter.linear_shape(first, linear) for linear in shared.linears]
                names = tuple(map(without_expert, shared.linears))
                rows = tuple(shape[0] for shape in shapes)
                inputs.append(ReadTogether(names, shapes[0][1], rows, shared.experts))
        tensors = adapter.block_tensors(checkpoint, first)
        yield KindOfBlock(
            blocks=_in_words(blocks),
            count=len(blocks),
            parameters=sum(checkpoint.info(name).elements for name in tensors),
            inputs=tuple(inputs),
            exact=dict(adapter.kept_exact(first)),
        )


def _in_words(numbers: Iterable[int]) -> str:
    """``0-2, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _outside(checkpoint: Checkpoint, adapter: BaseModelAdapter) -> Iterator[Part]:
    inner = [adapter.block_prefix(block) for block in range(adapter.blocks)]
    outer = [name for name in checkpoint.tensors if not name.startswith(tuple(inner))]
    for module, names in outermost(outer, inner).items():
        why = adapter.layout.outside.get(module) or adapter.layout.outside.get(f"{module}.")
        if why is None:
            why = _TEXT_ENDS if module in (adapter.embedding, adapter.head) else OUTSIDE
        elements = sum(checkpoint.info(name).elements for name in names)
        yield Part(module, len(names), elements, why)


def _quantized(adapter: BaseModelAdapter) -> Iterator[int]:
    """Numbers that would be quantized of each block."""
    kinds = Counter(adapter.layout.kind_of)
    for number, count in kinds.items():
        block = adapter.layout.kind_of.index(number)
        shapes = (adapter.linear_shape(block, linear) for linear in adapter.linears(block))
        yield count * sum(rows * columns for rows, columns in shapes)


def _bytes_in(scheme: WeightScheme, checkpoint: Checkpoint, adapter: BaseModelAdapter) -> int:
    recipe = Recipe(quantization=QuantizationSection(method="minmax", weights=scheme))
    return model_sizes(recipe, checkpoint, adapter).quantized_bytes


def _vllm(adapter: BaseModelAdapter) -> Vllm:
    fused: dict[str, tuple[str, ...]] = {}
    spelled: dict[str, tuple[str, ...]] = {}
    for number in dict.fromkeys(adapter.layout.kind_of):
        block = adapter.layout.kind_of.index(number)
        for name, parts in adapter.fused(block).items():
            fused[name] = tuple(dict.fromkeys(map(without_expert, parts)))
        for linear in adapter.kept_exact(block):
            # Of a mixture, vLLM is told as a whole.
            name, *others = adapter.spelled(block, linear.partition(f".{ANY_EXPERT}.")[0])
            if others:
                spelled[name] = tuple(others)
    return Vllm(vllm_version(), vllm_serves(adapter.layout.architecture), fused, spelled)
