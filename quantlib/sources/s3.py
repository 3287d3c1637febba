"""A model below a prefix in object storage, in Hugging Face's layout."""

from __future__ import annotations

from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.source import StoreSource
from quantlib.runtime.progress import Advance
from quantlib.sources.arrival import Arrived, bring_model, room_needed
from quantlib.sources.inspection import Kind, kind_of, model_files, open_model
from quantlib.sources.scan import ShowProgress, hash_and_scan, hash_and_scan_chunks
from quantlib.sources.space import require_space
from quantlib.store import FileRecord, StepOutput
from quantlib.store.receipt import digest_of
from quantlib.store.s3 import S3Store


def versions_digest(files: StoreSource) -> str:
    """``sha256:`` digest over names, sizes and versions of a model's files, none of them read."""
    names = model_files(open_model(files))
    return digest_of(
        [[name, files.files[name].bytes, files.files[name].version] for name in sorted(names)]
    )


def bring_from_s3(
    output: StepOutput, store: S3Store, files: StoreSource, progress: ShowProgress
) -> Kind:
    """Brings a model into the store; where one server has both, it copies what was looked at here.

    Args:
        output: Of the step.
        store: Its prefix, as a store.
        files: The files in it.
        progress: Shows how far it is.

    Returns:
        What it is.

    Raises:
        InvalidInputError: It cannot be quantized; what can be checked first, is.
        StoreError: It cannot be read, or changed meanwhile.
    """
    checkpoint = open_model(files)
    target = output.store
    copies = isinstance(target, S3Store) and target.can_copy_from(store)
    if not copies:
        sizes = [files.size(name) for name in model_files(checkpoint)]
        room = room_needed(output, sizes)
        require_space(output.scratch, room, "are to be downloaded", "free some")

    def bring(name: str, tensors: tuple[TensorInfo, ...], advance: Advance) -> Arrived:
        count = len(tensors) if tensors else None
        where, size = files.describe(name), files.size(name)
        if copies:
            digest, problems = hash_and_scan_chunks(store.stream(name), where, tensors, advance)
            record = FileRecord(bytes=size, sha256=digest, tensors=count)
            if not problems and not output.has(record):
                assert isinstance(target, S3Store)
                target.copy_from(store, name, record.blob, record, files.files[name].version)
            return Arrived(record, tuple(problems))
        path = output.scratch / "arriving" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in store.stream(name):
                file.write(chunk)
                advance(len(chunk))
        digest, problems = hash_and_scan(path, tensors, lambda bytes_read: None)
        record = FileRecord(bytes=path.stat().st_size, sha256=digest, tensors=count)
        if problems or output.has(record):
            path.unlink()
        else:
            target.put_file(path, record.blob, record.sha256)
        return Arrived(record, tuple(problems))

    bring_model(output, checkpoint, bring, progress)
    return kind_of(checkpoint)
