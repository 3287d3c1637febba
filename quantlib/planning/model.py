"""The sizes of a model that estimates go by."""

from __future__ import annotations

from dataclasses import dataclass

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import DTYPE_BYTES
from quantlib.checks.linears import linear_schemes
from quantlib.checks.outer import outer_schemes, unties
from quantlib.checks.scheme import batches_experts
from quantlib.formats.stored_bytes import stored_bytes
from quantlib.models import BaseModelAdapter
from quantlib.models.layout import BlockKind, SharedInput, of_expert, without_expert
from quantlib.models.naming import VISION
from quantlib.recipe import Recipe
from quantlib.report.text import size


@dataclass(frozen=True)
class GroupSize:
    """Linears that share an input, in the block that is largest.

    Attributes:
        columns: Their input channels.
        rows: Output channels of each.
        linears: Their names within the block.
        experts: How many experts have the same and may be quantized together; 0 for other linears.
        routed: To how many of these a token may go whose inputs are held at once.
    """

    columns: int
    rows: tuple[int, ...]
    linears: tuple[str, ...] = ()
    experts: int = 0
    routed: int = 1

    @property
    def name(self) -> str:
        """What messages call them: ``mlp.gate_proj and mlp.up_proj``."""
        return " and ".join(dict.fromkeys(map(without_expert, self.linears)))

    def together(self, most: int) -> int:
        """How many groups like it are quantized together, where at most so many experts are."""
        return max(1, min(most, self.experts))

    @property
    def all_rows(self) -> int:
        """Output channels of all together."""
        return sum(self.rows)

    @property
    def largest_rows(self) -> int:
        """Output channels of the largest."""
        return max(self.rows)


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model and of what is quantized of it.

    Attributes:
        blocks: How many there are.
        quantized_blocks: How many of them hold a linear that is quantized.
        hidden_size: Channels of the residual stream.
        stored_bytes: Bytes of a number in the checkpoint.
        groups: What is quantized of the largest block of which something is.
        largest_block_elements: Numbers in the largest block.
        block_elements: Numbers in all blocks together.
        embedding_bytes: Of the embedding table.
        total_bytes: Of the whole checkpoint.
        quantized_bytes: About that of the quantized one.
        tower_elements: Numbers in what images go through; 0 where there are none in the text.
        outer: ``(out_features, in_features)`` of the head and the embeddings, where quantized.
    """

    blocks: int
    quantized_blocks: int
    hidden_size: int
    stored_bytes: int
    groups: tuple[GroupSize, ...]
    largest_block_elements: int
    block_elements: int
    embedding_bytes: int
    total_bytes: int
    quantized_bytes: int
    tower_elements: int = 0
    outer: tuple[tuple[int, int], ...] = ()


def model_sizes(
    recipe: Recipe, checkpoint: Checkpoint, adapter: BaseModelAdapter, *, images: bool = False
) -> ModelSizes:
    """Reads the sizes from headers; no weight is read.

    Args:
        recipe: What is done.
        checkpoint: The model.
        adapter: The model's family.
        images: Whether it is calibrated with images.
    """
    elements = [
        sum(checkpoint.info(name).elements for name in adapter.block_tensors(checkpoint, block))
        for block in range(adapter.blocks)
    ]
    by_block = linear_schemes(recipe.quantization, adapter)
    touched = [block for block, schemes in enumerate(by_block) if schemes]
    groups = []
    if touched:
        largest = max(touched, key=elements.__getitem__)
        kind = adapter.layout.kind(largest)
        together = batches_experts(recipe.quantization)
        for group in adapter.inputs(largest):
            linears = tuple(linear for linear in group.linears if linear in by_block[largest])
            if linears:
                shapes = [adapter.linear_shape(largest, linear) for linear in linears]
                outputs = tuple(rows for rows, _ in shapes)
                experts, routed = (group.experts, _routed(kind, group)) if together else (0, 1)
                groups.append(GroupSize(shapes[0][1], outputs, linears, experts, routed))
    total = quantized = sum(info.bytes for info in checkpoint.tensors.values())
    stored = DTYPE_BYTES[adapter.stored_dtype(checkpoint)]
    shaped = [
        (scheme, adapter.linear_shape(block, linear))
        for block, schemes in enumerate(by_block)
        for linear, scheme in schemes.items()
    ]
    outer = outer_schemes(recipe.quantization, adapter)
    shaped += [(scheme, adapter.outer_shape(kind)) for kind, scheme in outer.items()]
    if unties(recipe.quantization, adapter):
        rows, columns = adapter.layout.head_shape
        quantized += rows * columns * stored
    for scheme, (rows, columns) in shaped:
        quantized += stored_bytes(scheme.weights, rows, columns) - rows * columns * stored
    embedding = checkpoint.tensors.get(f"{adapter.embedding}.weight")
    hidden_size = adapter.text_config.get("hidden_size")
    if not isinstance(hidden_size, int):  # of a family that nobody knows
        hidden_size = embedding.shape[-1] if embedding else 0
    return ModelSizes(
        blocks=adapter.blocks,
        quantized_blocks=len(touched),
        hidden_size=hidden_size,
        stored_bytes=stored,
        groups=tuple(groups),
        largest_block_elements=max(elements),
        block_elements=sum(elements),
        embedding_bytes=embedding.bytes if embedding else 0,
        total_bytes=total,
        quantized_bytes=quantized,
        tower_elements=sum(
            info.elements
            for name, info in checkpoint.tensors.items()
            if images and not VISION.isdisjoint(name.split("."))
        ),
        outer=tuple(map(adapter.outer_shape, outer)),
    )


def growth_line(recipe: Recipe, checkpoint: Checkpoint, adapter: BaseModelAdapter) -> str | None:
    """That the checkpoint will be larger than its source, in words; None where it will not."""
    source = checkpoint.quantized_bytes
    if source is None:
        return None
    made = model_sizes(recipe, checkpoint, adapter).quantized_bytes
    if made <= source:
        return None
    return (
        f"The checkpoint will be larger than its source, which is quantized already: about "
        f"{size(made)} in the place of {size(source)}; what is not quantized anew is written whole"
    )


def _routed(kind: BlockKind, shared: SharedInput) -> int:
    """To how many of the experts that are quantized together a token goes whose inputs are held.

    Those of down projections are, until all experts stand there.
    """
    number = shared.expert
    down = (name for name, module in kind.modules.items() if module.endswith(".*.down_proj"))
    if number is None or shared.name not in (of_expert(name, number) for name in down):
        return 1
    return max(experts.chosen or experts.count for experts in kind.experts)
