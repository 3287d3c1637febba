"""Opens a model where it is, for reading headers."""

from __future__ import annotations

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FileSource, FolderSource, StoreSource
from quantlib.sources import FolderAddress, GgufAddress, HubAddress, S3Address, parse_address
from quantlib.sources.folder import open_folder
from quantlib.sources.inspection import open_model
from quantlib.store import open_store


def open_headers(text: str) -> Checkpoint:
    """The config and the headers of the model at an address, which show nothing wrong.

    Raises:
        InvalidInputError: There is none, or it cannot be quantized; all problems at once.
        StepError: The hub cannot be asked.
        StoreError: Object storage cannot be read.
    """
    match parse_address(text):
        case FolderAddress(path):
            return open_folder(path)
        case _:
            return open_model(open_source(text))


def open_source(text: str) -> FileSource:
    """The files of the model at an address.

    Raises:
        InvalidInputError: There is none, or it is a GGUF file that cannot be converted.
        StepError: The hub cannot be asked.
        StoreError: Object storage cannot be read.
    """
    match parse_address(text):
        case FolderAddress(path):
            open_folder(path)
            return FolderSource(path)
        case HubAddress() as address:
            from quantlib.sources.hub import list_files, resolve_commit

            return list_files(address, resolve_commit(address))
        case S3Address(address):
            return StoreSource(open_store(address))
        case GgufAddress(path):
            from quantlib.sources.gguf import GgufSource
            from quantlib.sources.gguf_model import open_gguf

            return GgufSource(open_gguf(path))
