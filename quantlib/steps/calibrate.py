"""calibrate: hidden states at the start of each range, and channel statistics per block.

The original model is run over the calibration tokens block by block; at no time is more than one
block, or the embedding, in memory. Only what later steps need is computed: without smoothing, the
run ends at the start of the last range.
"""

from __future__ import annotations

from quantlib.calibration.inputs import calibration_windows
from quantlib.checkpoint.source import ReceiptSource
from quantlib.compatibility import needs_calibration, needs_hidden_states
from quantlib.models import open_model
from quantlib.outlier_suppression import BaseOutlierSuppressor, outlier_suppression_registry
from quantlib.progress import progress_bar
from quantlib.recipe import Recipe, recipe_from_text
from quantlib.report.summary import step_summary
from quantlib.steps.contract import StepCall
from quantlib.steps.plan import parse_range
from quantlib.store import Receipt, StepOutput, Store, commit_step

VERSION = 2
STATISTICS_NAME = "statistics.safetensors"


def hidden_name(block: int) -> str:
    """The file with the inputs of a block."""
    return f"hidden-{block:05}.safetensors"


def calibrate(store: Store, recipe: Recipe, model: Receipt, plan: Receipt, device: str) -> Receipt:
    """Collects what the quantize and smooth steps need of the original model's activations.

    Args:
        store: Where the steps' files are.
        recipe: Names the text, and decides what is needed.
        model: Receipt of the fetch step.
        plan: Receipt of the plan step.
        device: auto, cpu or cuda.

    Returns:
        A receipt with one file of hidden states per range, ``[samples, sequence, hidden_size]`` in
        the checkpoint's dtype, and one of statistics; with no file where nothing is needed.
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
    parameters = {
        "calibration": recipe.calibration.model_dump(mode="json")
        if needs_calibration(recipe)
        else None,
        "boundaries": boundaries,
        "statistics_to": observed_to,
        "statistics": {} if suppressor is None else suppressor.statistics_key(recipe.quantization),
    }

    def work(output: StepOutput) -> None:
        if parameters["calibration"] is not None:
            _collect(store, recipe, model, boundaries, suppressor, observed_to, device, output)

    # The boundaries stand in the parameters: plans with the same ones share their calibration.
    return commit_step(store, "calibrate", VERSION, parameters, {"model": model}, work)


def _collect(
    store: Store,
    recipe: Recipe,
    model: Receipt,
    boundaries: list[int],
    suppressor: BaseOutlierSuppressor | None,
    observed_to: int,
    device: str,
    output: StepOutput,
) -> None:
    import torch

    from quantlib.checkpoint.tensors import write_tensors
    from quantlib.compute import resolve_device, split_batches

    source = ReceiptSource(store, model)
    windows = calibration_windows(recipe, source)
    output.facts["text"] = {
        "source": windows.source,
        "digest": windows.digest,
        "samples": windows.tokens.shape[0],
        "sequence_length": windows.tokens.shape[1],
        "tokens": windows.tokens.size,
        "shipped": windows.shipped,
    }
    checkpoint, adapter = open_model(source)
    streamed = adapter.load_model(checkpoint, resolve_device(device))

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        digest, count = write_tensors(output.local(name), tensors)
        output.add(name, sha256=digest, tensors=count)

    with torch.no_grad():
        embedded = streamed.embed(torch.from_numpy(windows.tokens))
        batches = split_batches(embedded, streamed)
        del embedded
        statistics: dict[str, torch.Tensor] = {}
        stop = max([observed_to, *boundaries])
        with progress_bar("calibrate", stop, "blocks") as advance:
            for index in range(stop + 1):
                if index in boundaries:
                    hidden = torch.cat([batch.to(streamed.stored_dtype).cpu() for batch in batches])
                    save(hidden_name(index), {"hidden": hidden})
                    del hidden
                if index == stop:
                    break
                block = streamed.block(index)
                observer = None
                if suppressor is not None and index < observed_to:
                    observer = suppressor.observer(block, windows.tokens.size, recipe.quantization)
                for number, batch in enumerate(batches):
                    batches[number] = block.forward(batch, observer)
                if observer is not None:
                    collected = observer.tensors()
                    statistics |= {f"{index}.{name}": value for name, value in collected.items()}
                advance(1)
    if statistics:
        save(STATISTICS_NAME, statistics)


def main(call: StepCall) -> None:
    store = call.store()
    receipt = calibrate(
        store,
        recipe_from_text(call.text("recipe")),
        call.receipt("model"),
        call.receipt("plan"),
        call.text("device"),
    )
    call.write_receipt("calibration", store, receipt)
    call.write_artifact("summary", step_summary(store, receipt).encode())
