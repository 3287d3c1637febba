"""Whether there is a place and room on this machine for what a run writes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import DTYPE_BYTES
from quantlib.checks.linears import linear_schemes
from quantlib.checks.places import (
    Place,
    conflicts,
    local_path,
    model_places,
    standing_places,
    writable_problems,
)
from quantlib.checks.scheme import needs_calibration
from quantlib.errors import Problem, StoreError
from quantlib.evaluation.original import SHARD_BYTES
from quantlib.models import BaseModelAdapter
from quantlib.recipe import AskedRecipe, Recipe
from quantlib.sources.pinned import split_pin
from quantlib.sources.space import existing_ancestor
from quantlib.store import open_store


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


def place_problems(recipe: AskedRecipe, source: str, folders: Mapping[str, str]) -> list[Problem]:
    """Why folders of this machine cannot be written: they are, hold or lie in what is the user's.

    That is the model, the recipe's texts, the home folder and the current one.

    Args:
        recipe: Names the texts.
        source: The model.
        folders: Addresses of what is written, by what they are called: ``the store``. None of them
            may hold another.
    """
    places = standing_places()
    if (model := local_path(split_pin(source)[0])) is not None:
        places += model_places(model)
    for what, dataset in (
        ("the calibration text", recipe.calibration.dataset),
        ("the validation text", recipe.validation.dataset),
    ):
        if dataset and (text := local_path(dataset)) is not None and text.exists():
            places.append(Place(what, text))
    problems: list[Problem] = []
    for what, address in folders.items():
        if (folder := local_path(address)) is not None:
            problems += conflicts(folder, places)
            places.append(Place(what, folder))
    return problems


def store_problems(address: str) -> list[Problem]:
    """Why a folder cannot be a store: it holds something else."""
    folder = local_path(address)
    try:
        if folder is None or not folder.is_dir() or not (names := set(os.listdir(folder))):
            return []
    except OSError as error:
        return [Problem(address, f"cannot be read: {error.strerror}", "choose another")]
    if names & {"steps", "blobs", "layout.json"} or names <= {"tmp", "leases"}:
        return []
    return [Problem(address, "is not empty, and no store", "choose another folder for the store")]


def space_problems(
    recipe: Recipe,
    checkpoint: Checkpoint,
    adapter: BaseModelAdapter,
    store: Path,
    output: Path | None,
    plain: bool,
) -> list[Problem]:
    """Why the store or the output has no room for a run.

    Args:
        recipe: What to do.
        checkpoint: The model.
        adapter: Its family.
        store: The store's folder.
        output: The folder that the checkpoint is copied to; None where it stays in the store.
        plain: Whether validation writes a plain model.
    """
    written, hidden = required_bytes(recipe, checkpoint, adapter)
    remedy = "make room, or choose another folder with --store"
    # A spool of the file in the making, and scales and zero points beside the codes.
    beside = written
    if plain:  # when that spool is gone, and with one of its own
        total = sum(info.bytes for info in checkpoint.tensors.values())
        beside = max(beside, total + min(total, SHARD_BYTES))
    problems = _room_problems(store, written + beside + hidden, remedy)
    if output is not None and _device(output) != _device(store):
        problems += _room_problems(output, written, "make room, or choose another folder")
    return problems


def _room_problems(folder: Path, needed: int, remedy: str) -> list[Problem]:
    ancestor = existing_ancestor(folder.absolute())
    free = shutil.disk_usage(ancestor).free
    if free >= needed:
        return []
    what = f"needs about {needed / 1e9:.1f} GB, but {ancestor} has {free / 1e9:.1f} GB free"
    return [Problem(str(folder), what, remedy)]


def _device(folder: Path) -> int:
    return existing_ancestor(folder.absolute()).stat().st_dev


def required_bytes(
    recipe: Recipe, checkpoint: Checkpoint, adapter: BaseModelAdapter
) -> tuple[int, int]:
    """About how much a run writes, the model itself (linked, not copied) left out.

    Returns:
        The bytes of the checkpoint, and of the hidden states.
    """
    total = sum(info.bytes for info in checkpoint.tensors.values())
    stored, codes = DTYPE_BYTES[adapter.stored_dtype(checkpoint)], 0
    for block, schemes in enumerate(linear_schemes(recipe.quantization, adapter)):
        for linear, scheme in schemes.items():
            rows, columns = adapter.linear_shape(block, linear)
            total -= rows * columns * stored
            codes += rows * columns * scheme.weights.bits // 8
    hidden = 0
    if needs_calibration(recipe):
        tokens = recipe.calibration.num_samples * recipe.calibration.sequence_length
        hidden = recipe.num_ranges * tokens * adapter.text_config["hidden_size"] * 4
    return total + codes * 5 // 4, hidden
