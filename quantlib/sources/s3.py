"""A model below a prefix in object storage, in Hugging Face's layout."""

from __future__ import annotations

from pathlib import Path

from quantlib.checkpoint.source import StoreSource
from quantlib.sources.folder import ExaminedFolder, examine_folder
from quantlib.sources.inspection import model_files, open_model
from quantlib.sources.scan import ShowProgress
from quantlib.sources.space import require_space
from quantlib.store import Store
from quantlib.store.receipt import digest_of


def versions_digest(files: StoreSource) -> str:
    """``sha256:`` digest over names, sizes and versions of a model's files, none of them read."""
    names = model_files(open_model(files))
    return digest_of(
        [[name, files.files[name].bytes, files.files[name].version] for name in sorted(names)]
    )


def download_model(
    store: Store, files: StoreSource, folder: Path, progress: ShowProgress
) -> ExaminedFolder:
    """Downloads a model and examines it.

    Args:
        store: Its prefix, as a store.
        files: The files in it.
        folder: Where to download to.
        progress: Shows how far it is.

    Raises:
        InvalidInputError: It cannot be quantized; what can be checked first, is.
        StoreError: It cannot be read.
    """
    names = model_files(open_model(files))
    total = sum(files.size(name) for name in names)
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, total, "are to be downloaded", "free some")
    with progress("Downloading", total, "bytes") as advance:
        for name in names:
            store.export_file(name, folder / name)
            advance(files.size(name))
    return examine_folder(folder, progress)
