"""The models of benchmarks, as folders of safetensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from gemma3_270m import download_gemma3_270m
from off_lattice import write_off_lattice
from smollm2 import download_smollm2

from quantlib.steps.fetch import fetch
from quantlib.store import LocalStore

FOLDER = ROOT / "build" / "benchmarks" / "models"

DOWNLOADS: dict[str, Callable[[Path], Path]] = {
    "smollm2": download_smollm2,
    "gemma3": download_gemma3_270m,
}
"""By name, what gets the GGUF file of a model."""


def model_folder(name: str) -> Path:
    """A model, which is downloaded when it is first asked for."""
    folder = FOLDER / name
    if not (folder / "config.json").exists():
        store = LocalStore(FOLDER / "store")
        receipt = fetch(store, str(DOWNLOADS[name](ROOT / "build" / "models")))
        for file in sorted(receipt.files, key="config.json".__eq__):  # the config says: complete
            store.export_file(receipt.path(file), folder / file)
    return folder


def off_lattice_folder(name: str) -> Path:
    """The same with weights that do not come from 4 bits any more, and the same function."""
    folder = FOLDER / f"{name}-off-lattice"
    if not (folder / "model.safetensors").exists():
        write_off_lattice(model_folder(name), folder)
    return folder
