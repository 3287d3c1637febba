"""What the worker of the last range quantizes outside of the blocks.

The head, on what the quantized blocks give; the embeddings and linears of draft layers, through
which no calibration tokens go, to the nearest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.checks.linears import rounded_draft_names
from quantlib.checks.outer import calibrates_head, outer_schemes, rewritten_outside
from quantlib.checks.scheme import resolve_format
from quantlib.formats import format_registry
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import BaseQuantizer, InputStatistics, quantizer_registry
from quantlib.schemes import LinearScheme

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.blockwise.quantize_rows import QuantizedRows
    from quantlib.models.streamed import BlockWalk, StreamedModel

HeadInput = tuple[InputStatistics, "Tensor | None"]
"""What is known of the head's input, and what it is rounded by."""


def head_input(
    section: QuantizationSection, streamed: StreamedModel, walk: BlockWalk | None
) -> HeadInput:
    """Sends the calibration tokens on to the head, where it needs them.

    Args:
        section: How the model is quantized.
        streamed: The model.
        walk: The tokens, which stand behind its last block; None without calibration.
    """
    from quantlib.blockwise.quantize_block import has_static_inputs, static_scale
    from quantlib.blockwise.statistics import SeenInputs

    if walk is None or not calibrates_head(section, streamed.adapter):
        return InputStatistics(), None
    quantizer = _quantizer(section, outer_schemes(section, streamed.adapter)["lm_head"])
    seen = SeenInputs(quantizer.needs_hessian, has_static_inputs(quantizer))
    for x in walk.head_inputs():
        seen.add(x)
    return InputStatistics(seen.hessian()), static_scale(quantizer, seen.largest)


def write_outer(
    section: QuantizationSection, streamed: StreamedModel, head: HeadInput, path: Path
) -> list[str]:
    """Writes the head and the embeddings that are quantized, and an exact head of its own.

    Args:
        section: How the model is quantized.
        streamed: The model.
        head: Of :func:`head_input`.
        path: The file.

    Returns:
        A sentence for each, with its error.
    """
    from quantlib.checkpoint.tensors import write_tensor

    adapter, checkpoint = streamed.adapter, streamed.checkpoint
    said, written = [], set()
    with SafetensorsWriter(path) as writer:
        for kind, scheme in outer_schemes(section, adapter).items():
            name = adapter.outer_module(kind)
            if kind == "lm_head":
                made = _quantized(section, scheme, streamed, name, head)
            else:
                made = _quantized(_to_nearest(section), scheme, streamed, name, None)
            for part, tensor in made.tensors.items():
                write_tensor(writer, f"{name}.{part}", tensor)
            written.add(f"{name}.weight")
            said.append(_in_words(name, scheme, made))
        for tensor_name in rewritten_outside(section, adapter):
            if tensor_name not in written:  # the head that was the embedding
                info = checkpoint.info(f"{adapter.embedding}.weight")
                pieces = checkpoint.pieces(info.name)
                writer.add_pieces(tensor_name, info.dtype, info.shape, pieces)
        writer.finish()
    return said


def round_drafts(section: QuantizationSection, streamed: StreamedModel, path: Path) -> None:
    """Rounds linears of draft layers, through which no calibration tokens go, to the nearest."""
    from quantlib.checkpoint.tensors import read_tensor, write_tensor

    scheme = section.rest
    assert scheme is not None
    quantizer = _quantizer(_to_nearest(section), scheme)
    checkpoint_format = format_registry.get_format(resolve_format(section))
    with SafetensorsWriter(path) as writer:
        for name in rounded_draft_names(section, streamed.adapter):
            weight = read_tensor(streamed.checkpoint, f"{name}.weight")
            weights = {name: weight.to(streamed.device).float()}
            made = quantizer.quantize(weights, InputStatistics(), streamed.stored_dtype)
            linear = made.linears[name]
            for part, tensor in checkpoint_format.tensors(linear, scheme.activations).items():
                write_tensor(writer, f"{name}.{part}", tensor)
        writer.finish()


def _quantized(
    section: QuantizationSection,
    scheme: LinearScheme,
    streamed: StreamedModel,
    name: str,
    head: HeadInput | None,
) -> QuantizedRows:
    from quantlib.blockwise.quantize_rows import quantize_rows
    from quantlib.checkpoint.tensors import read_rows

    checkpoint, adapter = streamed.checkpoint, streamed.adapter
    tied = adapter.tied or f"{name}.weight" not in checkpoint.tensors
    tensor = f"{adapter.embedding if tied else name}.weight"
    rows, columns = checkpoint.info(tensor).shape

    def read(start: int, stop: int) -> Tensor:
        return read_rows(checkpoint, tensor, start, stop).to(streamed.device)

    return quantize_rows(
        name,
        (rows, columns),
        read,
        _quantizer(section, scheme),
        format_registry.get_format(resolve_format(section)),
        *(head or (InputStatistics(), None)),
        streamed.stored_dtype,
    )


def _quantizer(section: QuantizationSection, scheme: LinearScheme) -> BaseQuantizer:
    return quantizer_registry.get_quantizer(section.method)(section.of_scheme(scheme))


def _to_nearest(section: QuantizationSection) -> QuantizationSection:
    """The section with the method that needs no calibration; its format stays what it was."""
    update = {"method": "minmax", "options": {}, "format": resolve_format(section)}
    return section.model_copy(update=update)


def _in_words(name: str, scheme: LinearScheme, made: QuantizedRows) -> str:
    """What was done, with the share of the output's energy that changed, or of the weight's."""
    error, what = made.relative_error, "output"
    if error is None:
        error, what = made.relative_weight_error, "weight"
    return f"{name} is {scheme.words}, with a relative error of its {what} of {error:.2g}."
