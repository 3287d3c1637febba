"""What can be found wrong before anything is written. Imports neither torch nor transformers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.compatibility import exact_linears, needs_calibration
from quantlib.errors import Problem, StoreError
from quantlib.model_compatibility import sharing_problems
from quantlib.models import BaseModelAdapter, open_model
from quantlib.recipe import Recipe
from quantlib.sources import FolderAddress, parse_address, source_problems
from quantlib.sources.space import existing_ancestor
from quantlib.steps.plan import input_problems as plan_problems
from quantlib.store import open_store


def input_problems(recipe: Recipe, source: str, store: str, gpus: int = 1) -> list[Problem]:
    """Why a run cannot work: the model, the recipe on it, the texts, and room for the store.

    A model on the hub and a GGUF file are checked further when they have been fetched.

    Args:
        recipe: What to do.
        source: The model.
        store: The store's address.
        gpus: What validation spreads a model over.
    """
    problems = destination_problems(store)
    faults = source_problems(source)
    address = None if faults else parse_address(source)
    if isinstance(address, FolderAddress):
        files = FolderSource(address.path)
        faults = plan_problems(recipe, files)
        if not faults:
            checkpoint, adapter = open_model(files)
            faults = sharing_problems(recipe.quantization, adapter, gpus, "gpus")
            if not store.startswith("s3://"):
                folder = Path(store.removeprefix("file://"))
                problems += _space_problems(recipe, checkpoint, adapter, folder)
    return problems + faults


def destination_problems(address: str) -> list[Problem]:
    """Why nothing can be written at an address: a folder, or a prefix in object storage."""
    if address.startswith("s3://"):
        return _object_storage_problems(address)
    if "://" in address and not address.startswith("file://"):
        return [Problem(address, "unsupported kind of address", "give a folder or s3://…")]
    return writable_problems(Path(address.removeprefix("file://")))


def _object_storage_problems(address: str) -> list[Problem]:
    from quantlib.store.s3 import S3Store

    store = open_store(address)
    assert isinstance(store, S3Store)
    try:
        store.check_access()
    except StoreError as error:
        return [Problem(error.address, error.what)]
    return []


def output_problems(output: Path, *, overwrite: bool) -> list[Problem]:
    """Why a folder cannot become the output."""
    if output.is_file() or (output.exists() and not output.is_dir()):
        return [Problem(str(output), "is there and is no folder", "choose another")]
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        return [Problem(str(output), "is not empty", "choose another, or give --overwrite")]
    return writable_problems(output)


def writable_problems(folder: Path) -> list[Problem]:
    """Why a folder cannot be made or written to."""
    ancestor = existing_ancestor(folder.absolute().parent)
    if not ancestor.is_dir():
        return [Problem(str(folder), f"{ancestor} is no folder", "choose another")]
    if not os.access(ancestor, os.W_OK | os.X_OK):
        return [Problem(str(folder), f"no permission to write in {ancestor}", "choose another")]
    return []


def _space_problems(
    recipe: Recipe, checkpoint: Checkpoint, adapter: BaseModelAdapter, store: Path
) -> list[Problem]:
    needed = required_bytes(recipe, checkpoint, adapter)
    ancestor = existing_ancestor(store.absolute())
    free = shutil.disk_usage(ancestor).free
    if free >= needed:
        return []
    return [
        Problem(
            str(store),
            f"needs about {needed / 1e9:.1f} GB, but {ancestor} has {free / 1e9:.1f} GB free",
            "make room, or choose another folder with --store",
        )
    ]


def required_bytes(recipe: Recipe, checkpoint: Checkpoint, adapter: BaseModelAdapter) -> int:
    """About how much a run writes, the model itself (linked, not copied) left out."""
    section = recipe.quantization
    total = sum(info.bytes for info in checkpoint.tensors.values())
    codes = 0
    for block, exact in enumerate(exact_linears(section, adapter)):
        for linear in set(adapter.linears(block)) - exact:
            info = checkpoint.info(f"{adapter.linear_name(block, linear)}.weight")
            total -= info.bytes
            codes += info.elements * section.weights.bits // 8
    hidden = 0
    if needs_calibration(recipe):
        tokens = recipe.calibration.num_samples * recipe.calibration.sequence_length
        hidden = recipe.num_ranges * tokens * checkpoint.config["hidden_size"] * 4
    # A spool of the file in the making, and scales and zero points beside the codes.
    return 2 * (total + codes * 5 // 4) + hidden
