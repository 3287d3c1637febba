"""calibrate: hidden states at the start of each range, and channel statistics per block.

The original model is run over the calibration tokens block by block; at no time is more than one
block, or the embedding, in memory. Only what later steps need is computed: without smoothing and
with keys and values in the model's dtype, the run ends at the start of the last range. An
interrupted run goes on with the block that it was at.

Scales of keys and values come from here, and not from the workers of the ranges, so that they do
not depend on where ranges begin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.linears import linear_schemes
from quantlib.checks.recipe import recipe_from_text
from quantlib.checks.scheme import needs_calibration, needs_hidden_states
from quantlib.outlier_suppression import BaseOutlierSuppressor, outlier_suppression_registry
from quantlib.recipe import Recipe
from quantlib.runtime.progress import progress_bar
from quantlib.steps.contract import StepCall
from quantlib.steps.delivery import deliver
from quantlib.steps.kept import Kept
from quantlib.steps.layout import open_receipt
from quantlib.steps.plan import parse_range
from quantlib.steps.texts import input_of
from quantlib.steps.windows import read_samples, read_windows
from quantlib.store import FileRecord, Receipt, StepOutput, Store, commit_step
from quantlib.text.processor import Sample
from quantlib.text.windows import Windows

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.models.streamed import StreamedModel

STATISTICS_NAME = "statistics.safetensors"
CACHED_NAME = "cached.safetensors"
"""The largest magnitudes of queries, keys and values, by block, module and what they are of."""


def hidden_name(block: int) -> str:
    """The file with the inputs of a block."""
    return f"hidden-{block:05}.safetensors"


def calibrate(store: Store, recipe: Recipe, model: Receipt, plan: Receipt, device: str) -> Receipt:
    """Collects what the quantize and smooth steps need of the original model's activations.

    Args:
        store: Where the steps' files are.
        recipe: Decides what is needed.
        model: Receipt of the fetch step.
        plan: Receipt of the plan step, which names the windows.
        device: auto, cpu or cuda.

    Returns:
        A receipt with one file per range of what stands before its first block: hidden states,
        ``[samples, sequence, hidden_size]`` in the dtype of the model, and whatever else crosses
        between its blocks; that of the first block is empty, for the windows say it. And one file
        of statistics, and one of what attention keeps; no file where nothing is needed.
    """
    ranges = [parse_range(text) for text in plan.facts["ranges"]]
    needed = needs_hidden_states(recipe.quantization)
    boundaries = [start for start, _ in ranges] if needed else []
    suppressor = None
    if recipe.outlier_suppression is not None:
        suppression = recipe.outlier_suppression
        suppressor = outlier_suppression_registry.get_suppressor(suppression.method)(
            suppression.options
        )
    observed_to = 0 if suppressor is None else ranges[-1][1]
    cached = recipe.quantization.cache is not None
    calibrated = needs_calibration(recipe)
    parameters = {
        "boundaries": boundaries,
        "statistics_to": observed_to,
        "cached": cached,
        "statistics": {} if suppressor is None else suppressor.statistics_key(recipe.quantization),
    }
    # The boundaries stand in the parameters: plans with the same ones share their calibration.
    inputs = {"model": model}
    if not calibrated:
        return commit_step(store, "calibrate", parameters, inputs, lambda output: None)

    from quantlib.checkpoint.tensors import TORCH_DTYPES
    from quantlib.runtime.devices import numerics, resolve_device

    windowed = input_of(store, plan, "calibration")
    windows = read_windows(store, windowed)
    checkpoint, adapter = open_receipt(store, model)
    on = resolve_device(device)

    def work(output: StepOutput) -> None:
        output.facts["text"] = windows.account | {
            "samples": windows.samples,
            "sequence_length": windows.tokens.shape[1],
            "tokens": windows.token_count,
            "shipped": windows.shipped,
        }
        samples = None
        if windows.illustrated is not None:
            output.facts["text"]["with_images"] = windows.illustrated.samples
            samples = as_tensors(read_samples(store, windowed))
        streamed = adapter.load_model(checkpoint, on)  # imports transformers
        _collect(windows, samples, streamed, boundaries, suppressor, observed_to, recipe, output)

    rounding = numerics(on, TORCH_DTYPES[adapter.stored_dtype(checkpoint)])
    inputs = inputs | {"windows": windowed}
    return commit_step(store, "calibrate", parameters, inputs, work, rounding)


def _collect(
    windows: Windows,
    illustrated: Iterator[dict[str, Tensor]] | None,
    streamed: StreamedModel,
    boundaries: list[int],
    suppressor: BaseOutlierSuppressor | None,
    observed_to: int,
    recipe: Recipe,
    output: StepOutput,
) -> None:
    import torch

    from quantlib.blockwise.cached import CachedMaxima
    from quantlib.checkpoint.tensors import read_tensors, write_tensors

    kept = Kept(output)
    cached_to = streamed.adapter.blocks if recipe.quantization.cache else 0
    stop = max([observed_to, cached_to, *boundaries])
    tokens = torch.from_numpy(windows.tokens)

    def keep_boundary(index: int, boundary: dict[str, Tensor]) -> None:
        digest, count = write_tensors(output.local(hidden_name(index)), boundary)
        output.add(hidden_name(index), sha256=digest, tensors=count)

    with torch.no_grad(), progress_bar("calibrate", stop, "blocks") as advance:
        first, boundary = _restore(output, kept), None
        if first:
            output.remarks.append(f"{first} of {stop} blocks were kept by an earlier run.")
            boundary = read_tensors(FolderSource(kept.folder), hidden_name(first))
        advance(first)
        if 0 in boundaries and hidden_name(0) not in output.files:
            keep_boundary(0, {})
        blocks = range(first, stop)
        schemes = linear_schemes(recipe.quantization, streamed.adapter)
        walk = streamed.walk(tokens, blocks, boundary, illustrated) if blocks else None
        for block in walk or ():
            assert walk is not None
            index = block.index
            maxima = CachedMaxima() if index < cached_to else None
            with walk.attending(block, maxima):
                if suppressor is not None and index < observed_to:
                    observer = suppressor.observer(block, windows.token_count, schemes[index])
                    for standing in walk.standings(block, block.inputs):
                        observer(standing.shared, standing.inputs)
                    found = _of_block(index, observer.tensors())
                    write_tensors(kept.path(_statistics(index)), found)
                else:
                    walk.pass_through(block)
            if maxima is not None:
                write_tensors(kept.path(_cached(index)), _of_block(index, maxima.tensors()))
            if index + 1 in boundaries:
                keep_boundary(index + 1, walk.boundary())
            if index + 1 < stop and kept.due:
                write_tensors(kept.path(hidden_name(index + 1)), walk.boundary())
                files = {name: record.model_dump() for name, record in output.files.items()}
                observed = [_statistics(done) for done in range(min(index + 1, observed_to))]
                observed += [_cached(done) for done in range(min(index + 1, cached_to))]
                kept.save([hidden_name(index + 1), *observed], {"next": index + 1, "files": files})
            advance(1)
    for whole, name, count in (
        (STATISTICS_NAME, _statistics, observed_to),
        (CACHED_NAME, _cached, cached_to),
    ):
        if count:
            parts = (read_tensors(FolderSource(kept.folder), name(at)) for at in range(count))
            joined = {key: tensor for part in parts for key, tensor in part.items()}
            digest, tensors = write_tensors(output.local(whole), joined)
            output.add(whole, sha256=digest, tensors=tensors)


def _of_block(index: int, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{index}.{name}": tensor for name, tensor in found.items()}


def as_tensors(samples: Iterable[Sample]) -> Iterator[dict[str, Tensor]]:
    """What a model is given of samples with images, in torch's terms."""
    import torch

    for sample in samples:
        yield {name: torch.from_numpy(value) for name, value in sample.items()}


def _statistics(index: int) -> str:
    return f"statistics-{index:05}.safetensors"


def _cached(index: int) -> str:
    return f"cached-{index:05}.safetensors"


def _restore(output: StepOutput, kept: Kept) -> int:
    """Takes over what an earlier run kept; the block to go on with."""
    state = kept.resume()
    if state is None:
        return 0
    files = {name: FileRecord.model_validate(record) for name, record in state["files"].items()}
    if not all(output.has(record) for record in files.values()):
        return 0
    for name, record in files.items():
        output.add_reference(name, record)
    return int(state["next"])


def main(call: StepCall) -> None:
    store = call.store()
    receipt = calibrate(
        store,
        recipe_from_text(call.text("recipe")),
        call.receipt("model"),
        call.receipt("plan"),
        call.text("device"),
    )
    deliver(call, "calibration", store, receipt)
