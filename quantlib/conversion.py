"""Writes a quantized checkpoint in another format that holds the same numbers.

Nothing is rounded: codes, scales and zero points stay what they are, and the dequantized weights of
both are equal bit for bit. One linear is in memory at a time.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.checkpoint.checkpoint import CONFIG_NAME, INDEX_NAME, Checkpoint
from quantlib.checkpoint.header import TensorInfo, read_header
from quantlib.checkpoint.quantized import stated_quantization
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.checks.linears import scheme_of_blocks
from quantlib.checks.places import writable_problems
from quantlib.errors import InvalidInputError, Problem
from quantlib.formats import BaseFormat, format_registry
from quantlib.formats.compressed_cache import read_cache
from quantlib.formats.stored import stored
from quantlib.formats.stored.weights import StoredWeight
from quantlib.models import BaseModelAdapter, open_model
from quantlib.report.model import HTML_NAME, JSON_NAME
from quantlib.runtime.progress import progress_bar
from quantlib.schemes import CacheScheme, LinearScheme, WeightScheme
from quantlib.serving.options import serving_dtype
from quantlib.serving.vllm_config import VLLM_CONFIG_NAME, VllmConfig

if TYPE_CHECKING:
    from quantlib.numbers.quantized import QuantizedLinear

_WRITTEN_ANEW = {CONFIG_NAME, INDEX_NAME, VLLM_CONFIG_NAME}
_OF_THE_OTHER = {JSON_NAME, HTML_NAME, "README.md", "manifest.json", "manifest.json.sig"}
"""What tells how the checkpoint was made that is converted, by its digests."""


@dataclass(frozen=True)
class Converted:
    """What was done.

    Attributes:
        linears: How many were converted.
        bytes_before: Of the files of tensors.
        bytes_after: The same of what was written.
    """

    linears: int
    bytes_before: int
    bytes_after: int


def convert(folder: Path, output: Path, format_name: str) -> Converted:
    """Converts a checkpoint.

    Args:
        folder: A checkpoint in gptq, awq or compressed-tensors, of any tool's making.
        output: A folder that is not there, or an empty one.
        format_name: The format to write.

    Raises:
        UnknownNameError: There is no such format.
        InvalidInputError: The checkpoint, or the format for these numbers, does not do; all
            problems at once, and nothing is written.
    """
    made_by = format_registry.get_format(format_name)
    checkpoint = Checkpoint.open(FolderSource(folder))
    found = stored(checkpoint)
    if found is None:
        raise InvalidInputError.one(str(folder), "is not quantized", "quantlib quantize does that")
    adapter = open_model(FolderSource(folder))[1]
    weights = {weight.name.removesuffix(".weight"): weight for weight in found.weights}
    schemes = _schemes(checkpoint, weights)
    stated = stated_quantization(checkpoint.config)
    cache = read_cache(stated[1]) if stated else None
    problems = _problems(made_by, adapter, schemes, cache) + _output_problems(output)
    if problems:
        raise InvalidInputError(problems)
    by_block = [
        {
            linear: LinearScheme(weights=schemes[name])
            for linear in adapter.linears(block)
            if (name := adapter.linear_name(block, linear)) in schemes
        }
        for block in range(adapter.blocks)
    ]
    scheme = scheme_of_blocks(made_by.name, by_block, adapter, cache=cache)
    config = made_by.quantization_config(scheme)
    there = output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        parts = _write_weights(checkpoint, weights, schemes, made_by, output)
        _write_rest(folder, output, adapter, made_by)
        adapter.save_model(checkpoint, output, parts, config)
    except BaseException:
        for path in output.iterdir():
            path.unlink()
        if not there:
            output.rmdir()
        raise
    return Converted(len(weights), _bytes(folder), _bytes(output))


def _schemes(
    checkpoint: Checkpoint, weights: Mapping[str, StoredWeight]
) -> dict[str, WeightScheme]:
    """How each linear's numbers lie: symmetric where all of the same bits and groups are.

    Raises:
        InvalidInputError: Codes are not of a kind that several formats hold.
    """
    problems, sizes, uneven = [], {}, set()
    with progress_bar("read codes", len(weights), "linears") as advance:
        for name, weight in weights.items():
            linear = weight.codes(checkpoint.source)
            advance(1)
            if linear is None or linear.group_index is not None:
                kind = "lies in a way" if linear is None else "has columns in an order of its own"
                problems.append(Problem(name, f"{kind} that only its own format has"))
                continue
            zeros, middle = linear.zero_points, linear.middle
            if zeros is not None and not 0 <= int(zeros.min()) <= int(zeros.max()) < 2 * middle:
                problems.append(Problem(name, "has zero points that are no codes"))
            sizes[name] = (linear.scheme.bits, linear.scheme.group_size)
            if zeros is not None and bool((zeros != middle).any()):
                uneven.add(sizes[name])
    if problems:
        raise InvalidInputError(problems)
    return {
        name: WeightScheme(bits=bits, group_size=size, symmetric=(bits, size) not in uneven)
        for name, (bits, size) in sizes.items()
    }


def _problems(
    made_by: BaseFormat,
    adapter: BaseModelAdapter,
    schemes: Mapping[str, WeightScheme],
    cache: CacheScheme | None,
) -> list[Problem]:
    """Why the format cannot hold the checkpoint, or vLLM could not read it then."""
    where = f"--format {made_by.name}"
    of_linears = {
        adapter.linear_name(block, linear): block
        for block in range(adapter.blocks)
        for linear in adapter.linears(block)
    }
    problems = [
        Problem(name, "is quantized, but is no linear of a block that vLLM reads so elsewhere")
        for name in schemes
        if name not in of_linears
    ]
    counts = Counter(schemes.values())
    for scheme in counts:
        if reason := made_by.scheme_problem(scheme, "none"):
            problems.append(Problem(where, f"cannot hold this: {reason}"))
        elif any(".experts." in name for name, own in schemes.items() if own == scheme) and (
            reason := made_by.experts_problem(scheme, "none")
        ):
            problems.append(Problem(where, reason))
    linears = [LinearScheme(weights=scheme) for scheme in counts]
    if len(linears) > 1 and (reason := made_by.mixture_problem(linears)):
        problems.append(Problem(where, f"cannot hold this: {reason}"))
    exact = [
        {each for each in adapter.linears(block) if adapter.linear_name(block, each) not in schemes}
        for block in range(adapter.blocks)
    ]
    if cache is not None and (reason := made_by.cache_problem()):
        problems.append(Problem(where, f"cannot hold this: {reason}"))
    if reason := adapter.format_problem(made_by.name, exact):
        problems.append(Problem(where, reason))
    return problems


def _output_problems(output: Path) -> list[Problem]:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        return [Problem(str(output), "is there and is no empty folder", "choose another")]
    return writable_problems(output)


def _write_weights(
    checkpoint: Checkpoint,
    weights: Mapping[str, StoredWeight],
    schemes: Mapping[str, WeightScheme],
    made_by: BaseFormat,
    output: Path,
) -> dict[str, dict[str, TensorInfo]]:
    """Writes the files of tensors, as many as there were, and gives their headers."""
    from quantlib.checkpoint.tensors import write_tensor

    parts = {part.name: name for name, weight in weights.items() for part in weight.parts.values()}
    files = list(dict.fromkeys(info.file for info in checkpoint.tensors.values()))
    done: set[str] = set()
    headers = {}
    with progress_bar("convert", len(weights), "linears") as advance:
        for file in files:
            with SafetensorsWriter(output / file) as writer:
                for name, info in checkpoint.tensors.items():
                    if info.file != file:
                        continue
                    linear = parts.get(name)
                    if linear is None and _is_of(name, weights):
                        continue  # as the shape that compressed-tensors stores
                    if linear is None:
                        writer.add_pieces(name, info.dtype, info.shape, checkpoint.pieces(name))
                    elif linear not in done:
                        done.add(linear)
                        made = _converted(weights[linear], checkpoint, schemes[linear])
                        for part, tensor in made_by.tensors(made, "none").items():
                            write_tensor(writer, f"{linear}.{part}", tensor)
                        advance(1)
                writer.finish()
            headers[file] = read_header(FolderSource(output), file)
    return headers


def _is_of(name: str, weights: Mapping[str, StoredWeight]) -> bool:
    """Whether a tensor goes with codes, other than a bias."""
    module, _, part = name.rpartition(".")
    return module in weights and part != "bias"


def _converted(
    weight: StoredWeight, checkpoint: Checkpoint, scheme: WeightScheme
) -> QuantizedLinear:
    """A linear's codes, its zero points left out where they say nothing."""
    import torch

    linear = weight.codes(checkpoint.source)
    assert linear is not None, "which was looked at"
    zeros = linear.zero_points
    if scheme.symmetric:
        zeros = None
    elif zeros is None:
        zeros = torch.full_like(linear.scales, linear.middle, dtype=torch.uint8)
    else:
        zeros = zeros.to(torch.uint8)
    return replace(linear, zero_points=zeros, scheme=scheme)


def _write_rest(folder: Path, output: Path, adapter: BaseModelAdapter, made_by: BaseFormat) -> None:
    """Copies tokenizer and the like, and says how vLLM is to load the folder."""
    for path in sorted(folder.iterdir()):
        left_out = path.suffix == ".safetensors" or path.name in _WRITTEN_ANEW | _OF_THE_OTHER
        if path.is_file() and not left_out:
            shutil.copyfile(path, output / path.name)
    config = VllmConfig.model_validate(
        {"quantization": made_by.vllm_name, "dtype": serving_dtype(adapter.config)}
    )
    text = json.dumps(config.model_dump(exclude_none=True), indent=2) + "\n"
    (output / VLLM_CONFIG_NAME).write_text(text, encoding="utf-8")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
