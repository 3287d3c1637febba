"""Layers of an image: whole files below ``models/``, as tar archives whose bytes follow from them.

Nothing but name and content decides a layer: no time, no owner, no compression. So files that did
not change are layers that did not change, which a registry has and a node does not pull again.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from quantlib.errors import StoreError
from quantlib.publishing.destination import Member
from quantlib.store import FileRecord
from quantlib.store.base import require_expected

FOLDER = "models"
"""Where KServe looks for a model in an image."""

MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"
_BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * _BLOCK)
"""What an archive ends in."""

_MOST_WEIGHT_LAYERS = 100
"""Overlay file systems stack 127 layers."""


@dataclass(frozen=True)
class Layer:
    """Some files, in the order in which the archive holds them."""

    members: tuple[Member, ...]

    @property
    def title(self) -> str:
        """What is in it, for people."""
        first, others = self.members[0].name, len(self.members) - 1
        return first + (f" and {others} more" if others else "")

    @property
    def size(self) -> int:
        """Bytes of the archive."""
        seen: set[str] = set()
        sizes = [(member.name, member.record.bytes) for member in self.members]
        heads = sum(len(head) for name, size in sizes for head in heads_of(name, size, seen))
        return heads + sum(size + len(padding(size)) for _, size in sizes) + len(END)

    def digest(self) -> str:
        """``sha256:`` and the digits; every file is read.

        Raises:
            StoreError: A file cannot be read, or is not what was recorded.
        """
        hashed = hashlib.sha256()
        for chunk in self.chunks():
            hashed.update(chunk)
        return f"sha256:{hashed.hexdigest()}"

    def chunks(self) -> Iterator[bytes | bytearray]:
        """The archive.

        Raises:
            StoreError: A file cannot be read, or is not what was recorded.
        """
        seen: set[str] = set()
        for member in self.members:
            yield from heads_of(member.name, member.record.bytes, seen)
            yield from _checked(member)
            yield padding(member.record.bytes)
        yield END


def layers_of(checkpoint: Sequence[Member], descriptions: Sequence[Member]) -> list[Layer]:
    """The layers of a published folder, those that change least first.

    Each weight file is a layer of its own, as long as there are not too many; one holds the rest of
    the checkpoint, one the files that describe it.
    """
    weights = [member for member in checkpoint if member.name.endswith(".safetensors")]
    others = [member for member in checkpoint if member not in weights]
    at_once = -(-len(weights) // _MOST_WEIGHT_LAYERS) or 1
    parts = [weights[start : start + at_once] for start in range(0, len(weights), at_once)]
    return [Layer(tuple(part)) for part in (*parts, others, descriptions) if part]


def files_of(archive: bytes) -> dict[str, bytes]:
    """The files below ``models/`` of a small layer.

    Raises:
        StoreError: It is no archive.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            opened = ((each.name, tar.extractfile(each)) for each in tar if each.isfile())
            return {name.removeprefix(f"{FOLDER}/"): file.read() for name, file in opened if file}
    except tarfile.TarError as error:
        raise StoreError("layer", f"is no archive: {error}") from None


def heads_of(name: str, size: int, seen: set[str]) -> Iterator[bytes]:
    """What stands in an archive before a file: its head, after those of folders that are new.

    Args:
        name: Of the file, below the folder.
        size: Its bytes.
        seen: The folders that are there already; those that are new are added.
    """
    above = PurePosixPath(FOLDER, name).parents
    for folder in reversed([str(each) for each in above][:-1]):
        if folder not in seen:
            seen.add(folder)
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            yield entry.tobuf(tarfile.PAX_FORMAT)
    entry = tarfile.TarInfo(f"{FOLDER}/{name}")
    entry.size, entry.mode = size, 0o644
    yield entry.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """What stands in an archive after a file of so many bytes."""
    return bytes(-size % _BLOCK)


def _checked(member: Member) -> Iterator[bytes | bytearray]:
    hashed, size = hashlib.sha256(), 0
    for chunk in member.open():
        hashed.update(chunk)
        size += len(chunk)
        yield chunk
    found = FileRecord(bytes=size, sha256=hashed.hexdigest())
    require_expected(member.name, found, member.record)
