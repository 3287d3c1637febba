"""smooth: from channel statistics to smoothing scales, one vector per norm."""

from __future__ import annotations

import numpy as np

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import read_header
from quantlib.checkpoint.source import ReceiptSource
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.compatibility import exact_linears
from quantlib.models import model_registry
from quantlib.outlier_suppression import ChannelStatistics, outlier_suppression_registry
from quantlib.recipe import Recipe, recipe_from_text
from quantlib.steps.calibrate import STATISTICS_NAME
from quantlib.steps.contract import StepCall
from quantlib.store import Receipt, StepOutput, Store, commit_step

VERSION = 1
SCALES_NAME = "scales.safetensors"


def smooth(store: Store, recipe: Recipe, model: Receipt, calibration: Receipt) -> Receipt:
    """Computes smoothing scales for every group of linears behind a norm.

    Groups that stay exact are left alone.

    Args:
        store: Where the steps' files are.
        recipe: Names the suppressor and what stays exact.
        model: Receipt of the fetch step.
        calibration: Receipt of the calibrate step.

    Returns:
        A receipt with the file of scales, float32 ``<block>.<group>``; with no file where the
        recipe suppresses nothing.
    """
    section = recipe.outlier_suppression
    parameters = {
        "outlier_suppression": None if section is None else section.model_dump(mode="json"),
        "layers": None if section is None else recipe.quantization.layers,
        "ignore": None if section is None else recipe.quantization.ignore,
    }

    def work(output: StepOutput) -> None:
        if section is None:
            return
        suppressor = outlier_suppression_registry.get_suppressor(section.method)(section.options)
        adapter = model_registry.adapter_for(Checkpoint.open(ReceiptSource(store, model)).config)
        source = ReceiptSource(store, calibration)
        statistics = Checkpoint(source, {}, read_header(source, STATISTICS_NAME))

        def read(name: str) -> np.ndarray:
            return np.frombuffer(statistics.read(name), dtype="<f4")

        with SafetensorsWriter(output.local(SCALES_NAME)) as writer:
            for block, exact in enumerate(exact_linears(recipe.quantization, adapter)):
                for group in adapter.groups():
                    if group.producer is None or not group.producer.norm:
                        continue
                    if exact.issuperset(group.linears):
                        continue
                    name = f"{block}.{group.name}"
                    scales = suppressor.scales(
                        ChannelStatistics(
                            read(f"{name}.input_absmax"), read(f"{name}.weight_absmax")
                        )
                    )
                    writer.add(name, "F32", scales.shape, scales.astype("<f4").tobytes())
            digest, count = writer.finish()
        output.add(SCALES_NAME, sha256=digest, tensors=count)

    inputs = {"model": model, "calibration": calibration}
    return commit_step(store, "smooth", VERSION, parameters, inputs, work)


def main(call: StepCall) -> None:
    store = call.store()
    receipt = smooth(
        store,
        recipe_from_text(call.text("recipe")),
        call.receipt("model"),
        call.receipt("calibration"),
    )
    call.write_receipt("smoothing", store, receipt)
