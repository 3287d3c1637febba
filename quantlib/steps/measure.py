"""measure: what rounding each part of a range of blocks costs, in each scheme that it may get.

For recipes with a budget. Ranges are measured side by side, from the original's hidden states;
finished blocks are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantlib.checkpoint.source import FolderSource, ReceiptSource
from quantlib.errors import InvalidInputError
from quantlib.recipe import Recipe
from quantlib.runtime.progress import progress_bar
from quantlib.search.candidates import Space, search_space
from quantlib.steps.calibrate import hidden_name
from quantlib.steps.contract import StepCall
from quantlib.steps.delivery import run_range
from quantlib.steps.kept import Kept
from quantlib.steps.layout import open_receipt
from quantlib.steps.plan import parse_range
from quantlib.steps.texts import input_of
from quantlib.steps.windows import read_windows
from quantlib.store import Receipt, StepOutput, Store, commit_step

if TYPE_CHECKING:
    from quantlib.models.streamed import StreamedModel

ERRORS_NAME = "errors.json"


def measure(
    store: Store,
    recipe: Recipe,
    block_range: str,
    model: Receipt,
    calibration: Receipt,
    device: str,
) -> Receipt:
    """Measures a range of blocks.

    Args:
        store: Where the steps' files are.
        recipe: With a budget.
        block_range: ``"0:8"``.
        model: Receipt of the fetch step.
        calibration: Receipt of the calibrate step.
        device: auto, cpu or cuda.

    Returns:
        A receipt with the error of each part in each candidate, ``{block: {part: {name: error}}}``.
    """
    from quantlib.runtime.devices import numerics, resolve_device

    start, stop = parse_range(block_range)
    checkpoint, adapter = open_receipt(store, model)
    space = search_space(recipe, checkpoint, adapter)
    streamed = adapter.load_model(checkpoint, resolve_device(device))
    # Of the recipe only what says what is measured: other budgets find it here.
    parameters = {
        "range": block_range,
        "units": [
            [unit.block, unit.name, *unit.bytes]
            for unit in space.units
            if start <= unit.block < stop
        ],
        "candidates": {
            name: None if each.scheme is None else each.scheme.model_dump(mode="json")
            for name, each in space.candidates.items()
        },
    }

    def work(output: StepOutput) -> None:
        _measure(store, space, range(start, stop), streamed, calibration, output)

    inputs = {"model": model, "calibration": calibration}
    rounding = numerics(streamed.device, streamed.stored_dtype)
    return commit_step(store, "measure", parameters, inputs, work, rounding)


def _measure(
    store: Store,
    space: Space,
    blocks: range,
    streamed: StreamedModel,
    calibration: Receipt,
    output: StepOutput,
) -> None:
    import torch

    from quantlib.checkpoint.tensors import read_tensors, write_tensors
    from quantlib.models.boundary import first_samples
    from quantlib.search.sensitivity import PROBE_TOKENS, block_errors

    windows = read_windows(store, input_of(store, calibration, "windows"))
    tokens = torch.from_numpy(windows.tokens)
    tokens = tokens[: max(1, PROBE_TOKENS // tokens.shape[1])]
    if not len(tokens):
        raise InvalidInputError.one(
            "calibration.dataset",
            "has no window of text alone, on which a search tries schemes",
            "add rows without images",
        )
    output.facts["tokens"] = tokens.numel()
    schemes = {name: candidate.scheme for name, candidate in space.candidates.items()}
    kept = Kept(output)
    state: dict[str, Any] = kept.resume() or {"next": blocks.start, "errors": {}}
    first, errors = state["next"], dict(state["errors"])
    boundary = None
    if first > blocks.start:
        boundary = read_tensors(FolderSource(kept.folder), hidden_name(first))
    elif first:
        whole = read_tensors(ReceiptSource(store, calibration), hidden_name(first))
        boundary = first_samples(whole, len(tokens), streamed.adapter.layout.axes)
    bar = progress_bar(f"measure {blocks.start}:{blocks.stop}", len(blocks), "blocks")
    with torch.no_grad(), bar as advance:
        advance(first - blocks.start)
        walk = streamed.walk(tokens, range(first, blocks.stop), boundary)
        for block in walk:
            units = [unit for unit in space.units if unit.block == block.index]
            if units:
                errors[str(block.index)] = block_errors(
                    walk, block, units, schemes, streamed.stored_dtype
                )
            walk.pass_through(block)
            if block.index < blocks[-1] and kept.due:
                name = hidden_name(block.index + 1)
                write_tensors(kept.path(name), walk.boundary())
                kept.save([name], {"next": block.index + 1, "errors": errors})
            advance(1)
    output.add_json(ERRORS_NAME, errors)


def main(call: StepCall) -> None:
    run_range(call, measure, ("model", "calibration"), "measured")
