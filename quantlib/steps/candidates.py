"""Original and checkpoint, made ready for vLLM's server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlib.checkpoint.source import ReceiptSource
from quantlib.evaluation.judging import (
    dequantized_checkpoint_reason,
    dequantized_source_reason,
    emulated_checkpoint_reason,
    in_words,
)
from quantlib.evaluation.original import make_plain, make_servable
from quantlib.models import BaseModelAdapter
from quantlib.recipe import Recipe
from quantlib.steps.layout import open_receipt
from quantlib.store import Receipt, Store, materialize


@dataclass(frozen=True)
class Candidate:
    """One of two models, to be served.

    Attributes:
        role: original or quantized.
        receipt: Of the step that made it.
        place: Puts it into a folder, as vLLM loads it.
        arguments: Of vLLM.
        how: Why it is not served as it is; None where it is.
    """

    role: str
    receipt: Receipt
    place: Callable[[Path], None]
    arguments: dict[str, Any]
    how: str | None


def candidates_of(
    store: Store,
    recipe: Recipe,
    model: Receipt,
    checkpoint: Receipt,
    context: int,
    device: str,
    gpus: int,
) -> tuple[Candidate, Candidate]:
    """The original and the checkpoint, with what each is served by.

    Args:
        store: Where the steps' files are.
        recipe: What the checkpoint was made by.
        model: The fetch step's receipt.
        checkpoint: The merge step's receipt.
        context: Tokens that they have to read.
        device: auto, cpu or cuda.
        gpus: What each is spread over.
    """
    _, adapter = open_receipt(store, model)
    plain = dequantized_source_reason(ReceiptSource(store, model), "vllm", device)
    told = recipe.quantization, adapter, "vllm", device
    dequantized = dequantized_checkpoint_reason(*told)
    arguments = {
        "max_model_len": context,
        "dtype": checkpoint.facts["serve"]["dtype"],
    }
    if gpus > 1:
        arguments["tensor_parallel_size"] = gpus
    cached = recipe.quantization.cache is not None
    return (
        Candidate(
            "original", model, _original(store, model, adapter, plain), arguments, in_words(plain)
        ),
        Candidate(
            "quantized",
            checkpoint,
            _quantized(store, checkpoint, cached)
            if dequantized
            else _placed(store, checkpoint, checkpoint.facts["checkpoint_files"]),
            checkpoint.facts["serve"] | arguments,
            in_words(dequantized, emulated_checkpoint_reason(*told)),
        ),
    )


def _placed(store: Store, receipt: Receipt, names: Iterable[str]) -> Callable[[Path], None]:
    def place(folder: Path) -> None:
        for name in names:
            materialize(store, receipt.path(name), folder / name)

    return place


def _original(
    store: Store, model: Receipt, adapter: BaseModelAdapter, plain: str | None
) -> Callable[[Path], None]:
    def place(folder: Path) -> None:
        _placed(store, model, model.files)(folder)
        if plain is not None:
            make_plain(folder)
        make_servable(folder, adapter.layout.renamed)

    return place


def _quantized(store: Store, checkpoint: Receipt, cached: bool) -> Callable[[Path], None]:
    """The checkpoint as what its codes stand for."""

    def place(folder: Path) -> None:
        _placed(store, checkpoint, checkpoint.facts["checkpoint_files"])(folder)
        make_plain(folder, cached=cached)

    return place
