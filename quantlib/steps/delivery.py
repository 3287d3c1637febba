"""How steps are called by an engine, and what all of them deliver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quantlib.checks.recipe import recipe_from_text
from quantlib.report.summary import step_summary
from quantlib.steps.contract import StepCall
from quantlib.store import Receipt, Store


def deliver(
    call: StepCall,
    output: str,
    store: Store,
    receipt: Receipt,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes the receipt of a step, and what it did for the run's page.

    Args:
        call: Of the step.
        output: Name of the output that is the receipt.
        store: Where the receipt is.
        receipt: Of the step.
        about: What the artifact is, in the place of what is said of every receipt.
    """
    call.write_receipt(output, store, receipt, about)
    call.write_summary(step_summary(store, receipt))


def run_range(
    call: StepCall, step: Callable[..., Receipt], inputs: tuple[str, ...], output: str
) -> None:
    """Runs a step of one range of blocks.

    Args:
        call: Of the step.
        step: Takes the store, the recipe, the range, a receipt for each input, and the device.
        inputs: The names of the receipts that it takes.
        output: The name of the one that it gives.
    """
    store, recipe = call.store(), recipe_from_text(call.text("recipe"))
    receipts = map(call.receipt, inputs)
    receipt = step(store, recipe, call.text("block_range"), *receipts, call.text("device"))
    deliver(call, output, store, receipt)
