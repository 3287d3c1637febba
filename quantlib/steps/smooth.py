"""smooth: from channel statistics to smoothing scales, one vector per scaled input."""

from __future__ import annotations

import numpy as np

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import read_header
from quantlib.checkpoint.source import ReceiptSource
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.checks.linears import exact_linears
from quantlib.checks.recipe import recipe_from_text
from quantlib.outlier_suppression import outlier_suppression_registry
from quantlib.recipe import Recipe
from quantlib.steps.calibrate import STATISTICS_NAME
from quantlib.steps.contract import StepCall
from quantlib.steps.delivery import deliver
from quantlib.steps.layout import open_receipt
from quantlib.steps.resolved import resolved_suppression
from quantlib.store import Receipt, StepOutput, Store, commit_step

SCALES_NAME = "scales.safetensors"

_SEEN = np.ones(1, dtype="<f4")
"""Stands for the extremes of an input, with a suppressor that does not collect them."""


def smooth(store: Store, recipe: Recipe, model: Receipt, calibration: Receipt) -> Receipt:
    """Computes smoothing scales for the inputs that the suppressor scales.

    Groups with a linear that stays exact, or whose input such a linear gives, are left alone, and
    so are experts that no calibration token came to.

    Args:
        store: Where the steps' files are.
        recipe: Names the suppressor and what stays exact.
        model: Receipt of the fetch step.
        calibration: Receipt of the calibrate step.

    Returns:
        A receipt with the file of scales, float32 ``<block>.<input>``, and the fact ``alpha``: the
        strength for each block, None where nothing is scaled. With neither where the recipe
        suppresses nothing.
    """
    section = recipe.outlier_suppression
    parameters = {
        "outlier_suppression": resolved_suppression(section),
        "layers": None if section is None else recipe.quantization.layers,
        "ignore": None if section is None else recipe.quantization.ignore,
        "activations": None if section is None else recipe.quantization.activations,
        "schemes": None
        if section is None
        else [rule.model_dump(mode="json") for rule in recipe.quantization.schemes],
    }

    def work(output: StepOutput) -> None:
        if section is None:
            return
        suppressor = outlier_suppression_registry.get_suppressor(section.method)(section.options)
        _, adapter = open_receipt(store, model)
        source = ReceiptSource(store, calibration)
        statistics = Checkpoint(source, {}, read_header(source, STATISTICS_NAME))

        alphas: list[float | None] = []
        with SafetensorsWriter(output.local(SCALES_NAME)) as writer:
            for block, exact in enumerate(exact_linears(recipe.quantization, adapter)):
                prefix = f"{block}."
                of_block = {
                    name.removeprefix(prefix): np.frombuffer(statistics.read(name), dtype="<f4")
                    for name in statistics.tensors
                    if name.startswith(prefix)
                }
                scaled = [
                    shared
                    for shared in adapter.inputs(block)
                    if shared.producer is not None
                    and suppressor.scaled(shared)
                    and exact.isdisjoint([shared.producer.name, *shared.linears])
                    and of_block.get(f"{shared.name}.input_absmax", _SEEN).any()
                ]
                if not scaled:
                    alphas.append(None)
                    continue
                chosen = suppressor.scales(block, scaled, of_block)
                alphas.append(chosen.alpha)
                for name, scales in chosen.scales.items():
                    data = scales.astype("<f4").tobytes()
                    writer.add(f"{block}.{name}", "F32", scales.shape, data)
            digest, count = writer.finish()
        output.add(SCALES_NAME, sha256=digest, tensors=count)
        output.facts["alpha"] = alphas

    inputs = {"model": model, "calibration": calibration}
    numerics = {} if section is None else {"numpy": np.__version__}
    return commit_step(store, "smooth", parameters, inputs, work, numerics)


def main(call: StepCall) -> None:
    store = call.store()
    receipt = smooth(
        store,
        recipe_from_text(call.text("recipe")),
        call.receipt("model"),
        call.receipt("calibration"),
    )
    deliver(call, "smoothing", store, receipt)
