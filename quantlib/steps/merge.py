"""merge: the range files as they are, one file with the rest, index, config and tokenizer.

No file of tensors is read here beyond its header, and none is copied: the checkpoint names what the
store has. The exception are blocks that no range covers, because the recipe leaves them exact: they
are read and written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from quantlib.checkpoint.checkpoint import CONFIG_NAME, INDEX_NAME
from quantlib.checkpoint.header import TensorInfo, read_header
from quantlib.checkpoint.remote_code import is_config, without_code
from quantlib.checkpoint.source import ReceiptSource
from quantlib.checks.group_size import why
from quantlib.checks.linears import checkpoint_scheme, linear_schemes, rounded_draft_names
from quantlib.checks.outer import outer_schemes, unties
from quantlib.checks.recipe import recipe_from_text
from quantlib.errors import InvalidInputError, Problem
from quantlib.formats import format_registry
from quantlib.quantizers import quantizer_registry
from quantlib.recipe import Recipe
from quantlib.report.metadata import checkpoint_metadata
from quantlib.report.part_sizes import part_sizes
from quantlib.report.text import plural
from quantlib.runtime.foreign_json import parse_mapping
from quantlib.serving.options import serving_dtype
from quantlib.serving.vllm_config import VLLM_CONFIG_NAME, VllmConfig
from quantlib.steps.contract import StepCall
from quantlib.steps.delivery import deliver
from quantlib.steps.layout import open_receipt
from quantlib.steps.outer import OUTER_NAME, copy_tensors, separate_outer
from quantlib.steps.plan import parse_range
from quantlib.steps.quantize import BLOCKS_NAME, LINEARS_NAME
from quantlib.steps.resolved import resolved_quantization
from quantlib.store import FileRecord, Receipt, StepOutput, Store, commit_step
from quantlib.store.receipt import files_digest


def merge(store: Store, recipe: Recipe, model: Receipt, quantized: Sequence[Receipt]) -> Receipt:
    """Makes a checkpoint of quantized ranges.

    Args:
        store: Where the steps' files are.
        recipe: What was done.
        model: Receipt of the fetch step.
        quantized: Receipts of the quantize steps, in any order.

    Returns:
        A receipt whose files are the checkpoint and ``linears.json``.

    Raises:
        InvalidInputError: The ranges do not fit together.
    """
    ranges = sorted(quantized, key=_range_of)
    problems = _range_problems(ranges)
    if problems:
        raise InvalidInputError(problems)

    outer = separate_outer(store, recipe.quantization, model)

    def work(output: StepOutput) -> None:
        _merge(store, recipe, model, outer, ranges, output)

    parameters = {"quantization": resolved_quantization(recipe.quantization)}
    inputs = {"model": model, "outer": outer} | {
        f"quantized {receipt.parameters['range']}": receipt for receipt in ranges
    }
    searched = recipe.quantization.searched
    if searched is not None and store.exists(searched):
        inputs["search"] = Receipt.from_json(bytes(store.read(searched)), origin=searched)
    return commit_step(store, "merge", parameters, inputs, work)


def _range_problems(ranges: Sequence[Receipt]) -> list[Problem]:
    if not ranges:
        return [Problem("merge", "there is no range to merge")]
    problems = []
    expected = _range_of(ranges[0])[0]
    recipes = {json.dumps(_without_range(receipt), sort_keys=True) for receipt in ranges}
    if len(recipes) > 1:
        problems.append(Problem("merge", "the ranges were quantized by different recipes"))
    for receipt in ranges:
        start, stop = _range_of(receipt)
        if start != expected:
            problems.append(
                Problem(f"range {start}:{stop}", f"starts at block {start}, not {expected}")
            )
        expected = stop
    return problems


def _range_of(receipt: Receipt) -> tuple[int, int]:
    return parse_range(receipt.parameters["range"])


def _without_range(receipt: Receipt) -> dict[str, Any]:
    return {name: value for name, value in receipt.parameters.items() if name != "range"}


def _merge(
    store: Store,
    recipe: Recipe,
    model: Receipt,
    outer: Receipt,
    ranges: Sequence[Receipt],
    output: StepOutput,
) -> None:
    source = ReceiptSource(store, model)
    original, adapter = open_receipt(store, model)
    covered = {block for receipt in ranges for block in range(*_range_of(receipt))}
    uncovered = [block for block in range(adapter.blocks) if block not in covered]
    count = len(ranges) + 1 + bool(uncovered)

    def shard(number: int) -> str:
        return f"model-{number:05}-of-{count:05}.safetensors"

    parts: dict[str, dict[str, TensorInfo]] = {}
    errors: list[dict[str, Any]] = []
    copied = [(receipt, BLOCKS_NAME) for receipt in ranges] + [(outer, OUTER_NAME)]
    for number, (receipt, file) in enumerate(copied, start=1):
        output.add_reference(shard(number), receipt.files[file])
        parts[shard(number)] = read_header(ReceiptSource(store, receipt), file)
    for receipt in ranges:
        errors += json.loads(store.read(receipt.path(LINEARS_NAME)))
    if uncovered:
        names = [name for block in uncovered for name in adapter.block_tensors(original, block)]
        copy_tensors(original, names, output, shard(count))
        parts[shard(count)] = {name: original.info(name) for name in names}
    removed = without_code(CONFIG_NAME, original.config)[1]
    for name in model.files:
        if not name.endswith(".safetensors") and name not in (CONFIG_NAME, INDEX_NAME):
            removed += _add_described(output, source, model, name)

    scheme = checkpoint_scheme(recipe.quantization, adapter)
    quantizer = quantizer_registry.get_quantizer(recipe.quantization.method)(recipe.quantization)
    folder = output.local(INDEX_NAME).parent
    untie = unties(recipe.quantization, adapter)
    stated = quantizer._add_vllm_compatibility(scheme)
    adapter.save_model(original, folder, parts, stated, unties=untie)
    output.add(INDEX_NAME)
    output.add(CONFIG_NAME)
    vllm_config = VllmConfig.model_validate(
        {
            "quantization": format_registry.get_format(scheme.format).vllm_name,
            "dtype": serving_dtype(adapter.config),
        }
    )
    output.add_json(VLLM_CONFIG_NAME, vllm_config.model_dump(exclude_none=True))

    files = dict(output.files)
    output.add_json(LINEARS_NAME, errors)
    by_block = linear_schemes(recipe.quantization, adapter)
    tensors = {name: info for part in parts.values() for name, info in part.items()}
    outer_quantized = outer_schemes(recipe.quantization, adapter)
    sizes = part_sizes(original, tensors, adapter, by_block, outer_quantized)
    rounded = [f"{name}.weight" for name in rounded_draft_names(recipe.quantization, adapter)]
    if rounded:
        output.remarks.append(
            f"{plural(len(rounded), 'linear')} of layers that draft tokens were rounded without "
            "calibration."
        )
    if untie:
        output.remarks.append(
            f"{adapter.head} was {adapter.embedding}, and is a tensor of its own now."
        )
    if outer_quantized:
        output.facts["outer"] = list(outer_quantized)
    if chosen := why(recipe, adapter):
        output.facts["group_size"] = chosen
    output.facts |= {
        "checkpoint_digest": files_digest(files),
        "checkpoint_files": sorted(files),
        "bytes_original": _weight_bytes(model.files),
        "bytes_quantized": _weight_bytes(files),
        "blocks": adapter.blocks,
        "quantized_blocks": [block for block, schemes in enumerate(by_block) if schemes],
        "parts": [each.model_dump(mode="json") for each in sizes],
        "carried": dict(adapter.layout.carried(rounded)),
        "serve": vllm_config.arguments(),
        "removed": removed,
    }


def _add_described(
    output: StepOutput, source: ReceiptSource, model: Receipt, name: str
) -> list[str]:
    """Adds a file of the model as it is, or a config without what names code, which is returned."""
    if is_config(name):
        config = parse_mapping(source.read(name), source.describe(name), infinite=True)
        rest, removed = without_code(name, config)
        if removed:
            text = json.dumps(rest, indent=2, ensure_ascii=False) + "\n"
            output.add_bytes(name, text.encode())
            return removed
    output.add_reference(name, model.files[name])
    return []


def _weight_bytes(files: dict[str, FileRecord]) -> int:
    return sum(record.bytes for name, record in files.items() if name.endswith(".safetensors"))


def main(call: StepCall) -> None:
    store = call.store()
    recipe = recipe_from_text(call.text("recipe"))
    receipt = merge(store, recipe, call.receipt("model"), call.receipts("quantized"))
    deliver(call, "checkpoint", store, receipt, checkpoint_metadata(recipe, receipt))
