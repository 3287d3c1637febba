"""The files of windows in the store: tokens, and what a model is given of rows with images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from quantlib.checkpoint.header import read_header
from quantlib.checkpoint.source import ReceiptSource
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.store import Receipt, StepOutput, Store
from quantlib.text.processor import Sample
from quantlib.text.windows import IllustratedWindows, Windows
from quantlib.text.writing import Writing

TOKENS_NAME = "tokens.safetensors"
SAMPLES_NAME = "samples.safetensors"
ILLUSTRATED = "illustrated"
"""The fact, of a text and of its windows, that says what there is with images."""

_TENSOR, _KINDS = "tokens", "kinds"
_DTYPES = {"I64": "<i8", "I32": "<i4", "F32": "<f4", "BOOL": "?", "U8": "u1"}
"""Of what processors give, by safetensors' names for them; any other becomes float32."""


def write_tokens(output: StepOutput, tokens: np.ndarray, kinds: np.ndarray) -> None:
    """Writes windows of tokens, int64 ``[samples, sequence]``, and the kinds of these, int32."""
    with SafetensorsWriter(output.local(TOKENS_NAME)) as writer:
        writer.add(_TENSOR, "I64", tokens.shape, tokens.astype("<i8").tobytes())
        writer.add(_KINDS, "I32", kinds.shape, kinds.astype("<i4").tobytes())
        digest, count = writer.finish()
    output.add(TOKENS_NAME, sha256=digest, tensors=count)


def read_windows(store: Store, receipt: Receipt) -> Windows:
    """The windows of a receipt that :mod:`quantlib.steps.texts` made.

    Raises:
        StoreError: They are missing or damaged.
    """
    source = ReceiptSource(store, receipt)
    header = read_header(source, TOKENS_NAME)
    tokens, kinds = (
        np.frombuffer(source.read(TOKENS_NAME, info.start, info.bytes), _DTYPES[info.dtype])
        .reshape(info.shape)
        .astype(dtype, copy=False)
        for info, dtype in ((header[_TENSOR], np.int64), (header[_KINDS], np.int32))
    )
    facts = receipt.facts | {"writing": Writing(**receipt.facts["writing"])}
    if with_images(receipt):
        facts = facts | {ILLUSTRATED: IllustratedWindows(**facts[ILLUSTRATED])}
    return Windows(tokens, kinds=kinds, **facts)


def with_images(windowed: Receipt) -> bool:
    """Whether some of the windows of a receipt hold images."""
    return ILLUSTRATED in windowed.facts


def read_samples(store: Store, receipt: Receipt) -> Iterator[Sample]:
    """What the model is given of the windows with images, one after the other.

    Args:
        store: Where the steps' files are.
        receipt: As of :func:`read_windows`.

    Raises:
        StoreError: They are missing or damaged.
    """
    if not with_images(receipt):
        return
    source = ReceiptSource(store, receipt)
    header = read_header(source, SAMPLES_NAME)
    for number in range(receipt.facts[ILLUSTRATED]["samples"]):
        prefix = f"{number}."
        yield {
            name.removeprefix(prefix): np.frombuffer(
                source.read(SAMPLES_NAME, info.start, info.bytes), _DTYPES[info.dtype]
            ).reshape(info.shape)
            for name, info in header.items()
            if name.startswith(prefix)
        }


def write_samples(output: StepOutput, samples: Iterable[Sample]) -> IllustratedWindows:
    """Writes what a model is given of windows with images."""
    count = tokens = 0
    with SafetensorsWriter(output.local(SAMPLES_NAME)) as writer:
        for number, sample in enumerate(samples):
            count, tokens = number + 1, tokens + sample["input_ids"].size
            for name, value in sample.items():
                dtype = next((key for key, kind in _DTYPES.items() if value.dtype == kind), None)
                if dtype is None:
                    value, dtype = value.astype(np.float32), "F32"
                writer.add(f"{number}.{name}", dtype, value.shape, value.tobytes())
        digest, tensors = writer.finish()
    output.add(SAMPLES_NAME, sha256=digest, tensors=tensors)
    return IllustratedWindows(count, tokens, f"sha256:{digest}")
