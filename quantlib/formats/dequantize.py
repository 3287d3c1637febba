"""A quantized checkpoint as the floating-point model that it stands for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from torch import Tensor

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.tensors import TORCH_DTYPES, read_tensor
from quantlib.errors import InvalidInputError
from quantlib.formats.registry import format_registry
from quantlib.models import model_registry


def dequantized_state(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the model, one after the other, in the dtype of its unquantized ones.

    Args:
        checkpoint: A checkpoint that quantlib wrote, or one that is not quantized at all.

    Yields:
        Names as in the original checkpoint, and tensors.

    Raises:
        InvalidInputError: The checkpoint is quantized in a format that is not known.
    """
    config = checkpoint.config.get("quantization_config")
    if config is None:
        for name in checkpoint.tensors:
            yield name, read_tensor(checkpoint, name)
        return
    checkpoint_format = format_registry.get_format(str(config.get("quant_method")))
    weights, is_quantized = checkpoint_format.read_scheme(config)
    adapter = model_registry.adapter_for(checkpoint.config)
    linears = {
        adapter.linear_name(block, linear)
        for block in range(adapter.blocks)
        for linear in adapter.linears(block)
    }
    parts: dict[str, list[str]] = defaultdict(list)
    for name in checkpoint.tensors:
        module, _, part = name.rpartition(".")
        if module in linears and part != "bias" and is_quantized(module):
            parts[module].append(part)
        else:
            yield name, read_tensor(checkpoint, name)
    stored = TORCH_DTYPES[checkpoint.info(f"{adapter.embedding}.weight").dtype]
    for module, names in parts.items():
        tensors = {part: read_tensor(checkpoint, f"{module}.{part}") for part in names}
        try:
            linear = checkpoint_format.parse(tensors, weights)
        except KeyError as error:
            raise InvalidInputError.one(
                module, f"has no {error.args[0]}, which the {checkpoint_format.name} format needs"
            ) from None
        yield f"{module}.weight", linear.dequantize(stored)
