"""quantize: one range of blocks, from its own weights and its boundary hidden states.

Inside a range this is plain sequential quantization: each block is calibrated on what the quantized
block before it gives. The range starts from the original model's hidden states, so ranges do not
wait for each other.
"""

from __future__ import annotations

from quantlib.checkpoint.source import ReceiptSource
from quantlib.compatibility import exact_linears, needs_hidden_states, resolve_format
from quantlib.formats import format_registry
from quantlib.models import open_model
from quantlib.outlier_suppression import outlier_suppression_registry
from quantlib.progress import progress_bar
from quantlib.quantizers import quantizer_registry
from quantlib.recipe import Recipe, recipe_from_text
from quantlib.report.summary import step_summary
from quantlib.steps.calibrate import hidden_name
from quantlib.steps.contract import StepCall
from quantlib.steps.plan import parse_range
from quantlib.steps.smooth import SCALES_NAME
from quantlib.store import Receipt, StepOutput, Store, commit_step

VERSION = 2
BLOCKS_NAME = "blocks.safetensors"
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
    section = recipe.quantization
    parameters = {
        "range": block_range,
        "quantization": section.model_dump(mode="json") | {"format": resolve_format(section)},
        "outlier_suppression": None
        if recipe.outlier_suppression is None
        else recipe.outlier_suppression.method,
    }

    def work(output: StepOutput) -> None:
        _quantize_blocks(
            store, recipe, range(start, stop), model, calibration, smoothing, device, output
        )

    inputs = {"model": model, "calibration": calibration, "smoothing": smoothing}
    return commit_step(store, "quantize", VERSION, parameters, inputs, work)


def _quantize_blocks(
    store: Store,
    recipe: Recipe,
    blocks: range,
    model: Receipt,
    calibration: Receipt,
    smoothing: Receipt,
    device: str,
    output: StepOutput,
) -> None:
    import torch

    from quantlib.checkpoint.tensors import read_tensors, write_tensor
    from quantlib.checkpoint.writer import SafetensorsWriter
    from quantlib.compute import resolve_device, split_batches
    from quantlib.quantizers.block import quantize_block

    section = recipe.quantization
    checkpoint, adapter = open_model(ReceiptSource(store, model))
    streamed = adapter.load_model(checkpoint, resolve_device(device))
    quantizer = quantizer_registry.get_quantizer(section.method)(section)
    checkpoint_format = format_registry.get_format(resolve_format(section))
    exact_of = exact_linears(section, adapter)
    scales: dict[str, torch.Tensor] = {}
    suppressor = None
    if recipe.outlier_suppression is not None:
        suppressor = outlier_suppression_registry.get_suppressor(recipe.outlier_suppression.method)(
            recipe.outlier_suppression.options
        )
        own = tuple(f"{index}." for index in blocks)
        scales = read_tensors(ReceiptSource(store, smoothing), SCALES_NAME, own)
    batches: list[torch.Tensor] = []
    if needs_hidden_states(section):
        hidden = read_tensors(ReceiptSource(store, calibration), hidden_name(blocks.start))
        batches = split_batches(hidden.pop("hidden"), streamed)
    errors = []
    with (
        SafetensorsWriter(output.local(BLOCKS_NAME)) as writer,
        progress_bar(f"quantize {blocks.start}:{blocks.stop}", len(blocks), "blocks") as advance,
    ):
        for index in blocks:
            block = streamed.block(index)
            smoothed: dict[str, torch.Tensor] = {}
            if suppressor is not None:
                of_block = {
                    group.name: scales[f"{index}.{group.name}"]
                    for group in block.groups
                    if f"{index}.{group.name}" in scales
                }
                smoothed = suppressor.apply(block, of_block, streamed.stored_dtype)
            quantized = quantize_block(
                block,
                batches,
                quantizer,
                exact_of[index],
                streamed.stored_dtype,
                static_activations=section.activations == "int8-static",
                min_expert_tokens=recipe.calibration.min_expert_tokens,
                last=index == blocks[-1],
            )
            changed = smoothed | quantized.changed
            errors += [error.as_json() for error in quantized.errors]
            prefix = adapter.block_prefix(index)
            for name in adapter.block_tensors(checkpoint, index):
                local = name.removeprefix(prefix)
                linear = quantized.linears.get(local.removesuffix(".weight"))
                if linear is not None and local.endswith(".weight"):
                    module = name.removesuffix(".weight")
                    tensors = checkpoint_format.tensors(linear, section.activations)
                    for part, tensor in tensors.items():
                        write_tensor(writer, f"{module}.{part}", tensor)
                elif local in changed:
                    write_tensor(writer, name, changed[local])
                else:
                    info = checkpoint.info(name)
                    writer.add(name, info.dtype, info.shape, checkpoint.read(name))
            advance(1)
        digest, count = writer.finish()
    output.add(BLOCKS_NAME, sha256=digest, tensors=count)
    output.add_json(LINEARS_NAME, errors)


def main(call: StepCall) -> None:
    store = call.store()
    receipt = quantize(
        store,
        recipe_from_text(call.text("recipe")),
        call.text("block_range"),
        call.receipt("model"),
        call.receipt("calibration"),
        call.receipt("smoothing"),
        call.text("device"),
    )
    call.write_receipt("quantized", store, receipt)
    call.write_artifact("summary", step_summary(store, receipt).encode())
