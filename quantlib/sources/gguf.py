"""A model in a GGUF file: its weights dequantized to bf16, in Hugging Face's layout.

llama.cpp's converter renames the tensors and, for the ``llama`` architecture, reorders the rows of
the query and key projections within each head (``convert_hf_to_gguf.py``, ``LlamaModel.permute``);
to the norms of Gemma it adds the one that Gemma's own code adds (``Gemma3Model.norm_shift``). All
are undone here, one tensor at a time.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np

from quantlib.checkpoint.checkpoint import CONFIG_NAME, SINGLE_NAME
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.errors import InvalidInputError, Problem, StoreError
from quantlib.sources.gguf_header import GgufTensor
from quantlib.sources.gguf_model import GgufModel
from quantlib.sources.scan import ShowProgress, count_nonfinite, nonfinite_problem
from quantlib.sources.space import require_space
from quantlib.store import StepOutput

_CHUNK_BYTES = 1 << 20


def convert_gguf(model: GgufModel, output: StepOutput, progress: ShowProgress) -> dict[str, int]:
    """Writes a model as a bf16 checkpoint with config and tokenizer.

    At most one tensor is held in memory.

    Args:
        model: The file's model.
        output: Takes the files.
        progress: Shows how far it is.

    Returns:
        How many tensors of each GGUF type the file holds.

    Raises:
        InvalidInputError: There is no room for it; or a weight is NaN or Inf, or too large for
            bf16: all problems at once.
    """
    from quantlib.sources.gguf_tokenizer import gguf_tokenizer_files

    header, path = model.header, model.header.path
    elements = sum(math.prod(tensor.shape) for tensor in header.tensors.values())
    # The writer holds a spool beside the file in the making.
    require_space(output.scratch, 2 * 2 * elements, "are to be written", "free some")
    problems: list[Problem] = []
    types: dict[str, int] = {}
    with (
        SafetensorsWriter(output.local(SINGLE_NAME)) as writer,
        progress("Dequantizing", len(header.tensors), "tensors") as advance,
    ):
        for name, tensor in header.tensors.items():
            target = model.targets[name]
            data = dequantize_bf16(path, tensor, target.heads, target.added)
            if count := count_nonfinite(data.data.cast("B"), "BF16"):
                problems.append(nonfinite_problem(str(path), name, count, data.size))
            writer.add(target.name, "BF16", tensor.shape, data.data.cast("B"))
            types[tensor.type_name] = types.get(tensor.type_name, 0) + 1
            advance(1)
        if problems:
            raise InvalidInputError(problems)
        digest, count = writer.finish()
    output.add(SINGLE_NAME, sha256=digest, tensors=count)
    output.add_json(CONFIG_NAME, model.config)
    for file, content in gguf_tokenizer_files(header, output.scratch).items():
        output.add_bytes(file, content)
    return dict(sorted(types.items()))


class GgufSource:
    """What :func:`convert_gguf` would write, for reading headers: no weight is dequantized."""

    def __init__(self, model: GgufModel) -> None:
        from quantlib.sources.gguf_tokenizer import gguf_tokenizer_files

        self._path = model.header.path
        entries: dict[str, dict[str, object]] = {}
        at = 0
        for name, tensor in model.header.tensors.items():
            end = at + 2 * math.prod(tensor.shape)
            entry: dict[str, object] = {
                "dtype": "BF16",
                "shape": list(tensor.shape),
                "data_offsets": [at, end],
            }
            entries[model.targets[name].name] = entry
            at = end
        text = json.dumps(entries).encode()
        self._header = len(text).to_bytes(8, "little") + text
        self._weights = at
        with tempfile.TemporaryDirectory() as scratch:
            self._files = gguf_tokenizer_files(model.header, Path(scratch))
        self._files[CONFIG_NAME] = json.dumps(model.config).encode()

    def names(self) -> tuple[str, ...]:
        """The files that there would be, sorted."""
        return tuple(sorted((*self._files, SINGLE_NAME)))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        if name == SINGLE_NAME:
            return len(self._header) + self._weights
        return len(self._files[name])

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytearray:
        """``length`` bytes from ``offset``; of the weights their header only."""
        content = self._header if name == SINGLE_NAME else self._files[name]
        end = len(content) if length is None else offset + length
        if end > len(content):
            raise StoreError(self.describe(name), "is not there before it is converted")
        return bytearray(content[offset:end])

    def describe(self, name: str) -> str:
        """The file's address, for messages."""
        return str(self._path)


def dequantize_bf16(
    path: Path, tensor: GgufTensor, heads: int = 0, added: float = 0.0
) -> np.ndarray:
    """One tensor as bf16.

    Args:
        path: The GGUF file.
        tensor: The tensor.
        heads: Undo llama.cpp's reordering of the rows of this many heads; 0 for none.
        added: Take so much from every number.

    Returns:
        The bits of the bf16 numbers, uint16 ``[rows, columns]``, or ``[columns]`` of a vector.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    columns = tensor.shape[-1]
    rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    stored = np.memmap(path, np.uint8, "r", tensor.start, (rows, tensor.bytes // rows))
    order = _original_rows(rows, heads) if heads else np.arange(rows)
    result = np.empty((rows, columns), np.uint16)
    step = max(1, _CHUNK_BYTES // (4 * columns))
    for start in range(0, rows, step):
        chunk = dequantize(stored[order[start : start + step]], GGMLQuantizationType(tensor.type))
        result[start : start + step] = _round_to_bf16(chunk - np.float32(added))
    return result.reshape(tensor.shape)


def _original_rows(rows: int, heads: int) -> np.ndarray:
    """Where llama.cpp put each row: it interleaves the halves of every head."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)


def _round_to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of the nearest bf16, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
