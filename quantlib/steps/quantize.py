"""quantize: one range of blocks, from its own weights and its boundary hidden states.

Inside a range this is plain sequential quantization: each block is calibrated on what the quantized
block before it gives. The range starts from the original model's hidden states, so ranges do not
wait for each other. Finished blocks are kept: a range that is interrupted goes on with the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import read_header
from quantlib.checkpoint.source import FolderSource, ReceiptSource
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.checks.linears import linear_schemes
from quantlib.checks.outer import calibrates_head, outer_schemes
from quantlib.checks.scheme import needs_hidden_states, resolve_format
from quantlib.formats import format_registry
from quantlib.outlier_suppression import BaseOutlierSuppressor, outlier_suppression_registry
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import quantizer_registry
from quantlib.recipe import Recipe
from quantlib.runtime.progress import progress_bar
from quantlib.steps.calibrate import CACHED_NAME, as_tensors, hidden_name
from quantlib.steps.contract import StepCall
from quantlib.steps.delivery import run_range
from quantlib.steps.kept import Kept
from quantlib.steps.layout import open_receipt
from quantlib.steps.plan import last_block, parse_range
from quantlib.steps.quantize_outer import head_input, round_drafts, write_outer
from quantlib.steps.resolved import resolved_quantization, resolved_suppression
from quantlib.steps.smooth import SCALES_NAME
from quantlib.steps.texts import input_of
from quantlib.steps.windows import read_samples, read_windows, with_images
from quantlib.store import Receipt, StepOutput, Store, commit_step

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.blockwise.quantize_block import QuantizedBlock
    from quantlib.blockwise.statistics import TokenKinds
    from quantlib.models import SharedInput
    from quantlib.models.streamed import Block, StreamedModel
    from quantlib.numbers.cached import CacheScales
    from quantlib.schemes import LinearScheme

BLOCKS_NAME = "blocks.safetensors"
DRAFTS_NAME = "drafts.safetensors"
OUTER_NAME = "outer.safetensors"
LINEARS_NAME = "linears.json"


def quantize(
    store: Store,
    recipe: Recipe,
    block_range: str,
    model: Receipt,
    calibration: Receipt,
    smoothing: Receipt,
    device: str,
) -> Receipt:
    """Quantizes a range of blocks.

    Args:
        store: Where the steps' files are.
        recipe: What to do.
        block_range: ``"0:8"``.
        model: Receipt of the fetch step.
        calibration: Receipt of the calibrate step.
        smoothing: Receipt of the smooth step.
        device: auto, cpu or cuda.

    Returns:
        A receipt with one safetensors file in the checkpoint's final format, and the error of each
        linear.

    Raises:
        QuantizationError: A linear could not be quantized.
    """
    start, stop = parse_range(block_range)
    import torch

    from quantlib.checkpoint.tensors import TORCH_DTYPES
    from quantlib.runtime.devices import numerics, resolve_device

    parameters = {
        "range": block_range,
        "quantization": resolved_quantization(recipe.quantization),
        "outlier_suppression": resolved_suppression(recipe.outlier_suppression),
        "min_expert_tokens": recipe.calibration.min_expert_tokens,
    }
    checkpoint, adapter = open_receipt(store, model)
    on = resolve_device(device)

    calibrated = needs_hidden_states(recipe.quantization)

    def work(output: StepOutput) -> None:
        tokens, illustrated, kinds = None, None, None
        if calibrated:
            windowed = input_of(store, calibration, "windows")
            if with_images(windowed):
                illustrated = as_tensors(read_samples(store, windowed))
            windows = read_windows(store, windowed)
            if start == 0 or adapter.layout.embeds_cross or illustrated is not None:
                tokens = torch.from_numpy(windows.tokens)
            if windows.kinds is not None:
                from quantlib.blockwise.statistics import TokenKinds

                kinds = TokenKinds(torch.from_numpy(windows.kinds).flatten(), windows.kind_names)
        blocks, given = range(start, stop), _Given(tokens, illustrated, kinds)
        streamed = adapter.load_model(checkpoint, on)  # imports transformers
        with torch.no_grad():
            _quantize_blocks(store, recipe, blocks, streamed, given, calibration, smoothing, output)

    inputs = {"model": model, "calibration": calibration, "smoothing": smoothing}
    rounding = numerics(on, TORCH_DTYPES[adapter.stored_dtype(checkpoint)])
    return commit_step(store, "quantize", parameters, inputs, work, rounding)


@dataclass(frozen=True)
class _Given:
    """The windows that a range is calibrated on.

    Attributes:
        tokens: int64 ``[samples, sequence]``; None where their hidden states say enough.
        illustrated: What the model is given of windows with images; None where there are none.
        kinds: Of which kind of document each token is.
    """

    tokens: Tensor | None
    illustrated: Iterator[dict[str, Tensor]] | None
    kinds: TokenKinds | None


def _quantize_blocks(
    store: Store,
    recipe: Recipe,
    blocks: range,
    streamed: StreamedModel,
    given: _Given,
    calibration: Receipt,
    smoothing: Receipt,
    output: StepOutput,
) -> None:
    from quantlib.blockwise.quantize_block import quantize_block
    from quantlib.checkpoint.tensors import read_tensors, write_tensors

    section = recipe.quantization
    schemes_of = linear_schemes(section, streamed.adapter)
    quantizers = {
        scheme: quantizer_registry.get_quantizer(section.method)(section.of_scheme(scheme))
        for scheme in {scheme for schemes in schemes_of for scheme in schemes.values()}
    }
    smooth = _smoothing(store, recipe, blocks, smoothing)
    maxima: dict[str, Tensor] = {}
    if section.cache is not None:
        own = tuple(f"{index}." for index in blocks)
        maxima = read_tensors(ReceiptSource(store, calibration), CACHED_NAME, own)
    kept = Kept(output)
    state = kept.resume() or {"next": blocks.start, "errors": []}
    first, errors = state["next"], list(state["errors"])
    is_last = blocks[-1] == last_block(section, streamed.adapter)
    writes_outer = is_last and bool(outer_schemes(section, streamed.adapter))
    walk, head = None, None
    if needs_hidden_states(section):
        boundary = None
        if first > blocks.start:
            boundary = read_tensors(FolderSource(kept.folder), hidden_name(first))
        elif first:
            boundary = read_tensors(ReceiptSource(store, calibration), hidden_name(first))
        to_head = is_last and calibrates_head(section, streamed.adapter)
        rest = range(first, blocks.stop)
        walk = streamed.walk(given.tokens, rest, boundary, given.illustrated, to_head=to_head)
    with progress_bar(f"quantize {blocks.start}:{blocks.stop}", len(blocks), "blocks") as advance:
        if first > blocks.start:
            note = f"{first - blocks.start} of {len(blocks)} blocks were kept by an earlier run."
            output.remarks.append(note)
            advance(first - blocks.start)
        for block in walk or streamed.each(range(first, blocks.stop)):
            index = block.index
            quantized = quantize_block(
                block,
                walk,
                {linear: quantizers[scheme] for linear, scheme in schemes_of[index].items()},
                streamed.stored_dtype,
                smooth=smooth,
                min_expert_tokens=recipe.calibration.min_expert_tokens,
                kinds=given.kinds,
            )
            errors += [error.as_json() for error in quantized.errors]
            file = kept.path(_block(index))
            scales = _cache_scales(section, block, maxima, smooth, quantized)
            _write_block(section, schemes_of[index], streamed, index, quantized, scales, file)
            if index < blocks[-1] and kept.due:
                names = [_block(done) for done in range(blocks.start, index + 1)]
                if walk is not None:
                    names.append(hidden_name(index + 1))
                    write_tensors(kept.path(names[-1]), walk.boundary())
                kept.save(names, {"next": index + 1, "errors": errors})
            if writes_outer and index == blocks[-1]:
                head = head_input(section, streamed, walk)
            advance(1)
    names = [_block(index) for index in blocks]
    if head is not None:
        names.append(OUTER_NAME)
        output.remarks += write_outer(section, streamed, head, kept.path(OUTER_NAME))
    if section.draft_layers and is_last:
        names.append(DRAFTS_NAME)
        round_drafts(section, streamed, kept.path(DRAFTS_NAME))
    _join(kept.folder, names, output)
    output.add_json(LINEARS_NAME, errors)


@dataclass(frozen=True)
class _Smoothing:
    """Folds the suppressor's scales into blocks.

    Attributes:
        suppressor: Decided them.
        scales: What shared inputs are divided by, float32 ``[in_features]``, by block and name.
    """

    suppressor: BaseOutlierSuppressor
    scales: Mapping[str, Tensor]

    def __call__(self, block: Block, inputs: Sequence[SharedInput]) -> dict[str, Tensor]:
        """Folds those of some inputs; gives what changed besides the weights of linears."""
        return self.suppressor.apply(block, inputs, self._found(block, inputs))

    def divided(self, block: Block) -> dict[str, Tensor]:
        """What outputs of linears of a block are divided by."""
        from quantlib.models.folding import divided_outputs

        return divided_outputs(block, block.inputs, self._found(block, block.inputs))

    def _found(self, block: Block, inputs: Sequence[SharedInput]) -> dict[str, Tensor]:
        names = {shared.name: f"{block.index}.{shared.name}" for shared in inputs}
        return {name: self.scales[full] for name, full in names.items() if full in self.scales}


def _smoothing(
    store: Store, recipe: Recipe, blocks: range, smoothing: Receipt
) -> _Smoothing | None:
    """What folds the suppressor's scales into a block; None where nothing is suppressed."""
    from quantlib.checkpoint.tensors import read_tensors

    if recipe.outlier_suppression is None:
        return None
    suppressor = outlier_suppression_registry.get_suppressor(recipe.outlier_suppression.method)(
        recipe.outlier_suppression.options
    )
    own = tuple(f"{index}." for index in blocks)
    return _Smoothing(suppressor, read_tensors(ReceiptSource(store, smoothing), SCALES_NAME, own))


def _cache_scales(
    section: QuantizationSection,
    block: Block,
    maxima: Mapping[str, Tensor],
    smoothing: _Smoothing | None,
    quantized: QuantizedBlock,
) -> dict[str, CacheScales]:
    """The scales of each module of attention of a block, by its name within the block.

    Args:
        section: Says what is kept in FP8.
        block: The block, which was quantized.
        maxima: The largest magnitudes in the original model, as the calibrate step names them.
        smoothing: What was folded into the block before it was quantized.
        quantized: What quantizing it gave.
    """
    from quantlib.blockwise.cached import cache_scales

    if section.cache is None:
        return {}
    own = f"{block.index}."
    largest = {name.removeprefix(own): maxima[name] for name in maxima if name.startswith(own)}
    divided = {} if smoothing is None else smoothing.divided(block)
    for name, divisors in quantized.divided.items():
        divided[name] = divisors * divided[name] if name in divided else divisors
    return {
        each.name: cache_scales(each, block.inputs, largest, divided, section.cache)
        for each in block.attention
    }


def _block(index: int) -> str:
    return f"block-{index:05}.safetensors"


def _write_block(
    section: QuantizationSection,
    schemes: Mapping[str, LinearScheme],
    streamed: StreamedModel,
    index: int,
    quantized: QuantizedBlock,
    scales: Mapping[str, CacheScales],
    path: Path,
) -> None:
    """Writes all tensors of a block in the checkpoint's final format."""
    from quantlib.checkpoint.tensors import write_tensor

    adapter, checkpoint = streamed.adapter, streamed.checkpoint
    checkpoint_format = format_registry.get_format(resolve_format(section))
    prefix = adapter.block_prefix(index)
    replaced = adapter.replaced(checkpoint, index, quantized.linears)
    with SafetensorsWriter(path) as writer:
        for linear, made in quantized.linears.items():
            tensors = checkpoint_format.tensors(made, schemes[linear].activations)
            for part, tensor in tensors.items():
                write_tensor(writer, f"{prefix}{linear}.{part}", tensor)
        for module, own in scales.items():
            for part, tensor in checkpoint_format.cache_tensors(own).items():
                write_tensor(writer, f"{prefix}{module}.{part}", tensor)
        for linear, weight in quantized.unstacked.items():
            write_tensor(writer, f"{prefix}{linear}.weight", weight)
        for name in adapter.block_tensors(checkpoint, index):
            local = name.removeprefix(prefix)
            if name in replaced:
                continue
            if local in quantized.changed:
                write_tensor(writer, name, quantized.changed[local])
            else:
                info = checkpoint.info(name)
                writer.add(name, info.dtype, info.shape, checkpoint.read(name))
        writer.finish()


def _join(folder: Path, names: list[str], output: StepOutput) -> None:
    """Writes the blocks' files as one."""
    source = FolderSource(folder)
    with SafetensorsWriter(output.local(BLOCKS_NAME)) as writer:
        for file in names:
            block = Checkpoint(source, {}, read_header(source, file))
            for name, info in block.tensors.items():
                writer.add(name, info.dtype, info.shape, block.read(name))
            (folder / file).unlink()
        digest, count = writer.finish()
    output.add(BLOCKS_NAME, sha256=digest, tensors=count)


def main(call: StepCall) -> None:
    run_range(call, quantize, ("model", "calibration", "smoothing"), "quantized")
