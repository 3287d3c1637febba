"""The files of a text, found where they are and not read yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from quantlib.errors import InvalidInputError
from quantlib.text.addresses import Text
from quantlib.text.beside import ImagesBeside
from quantlib.text.files import TextFile, local_file
from quantlib.text.formats import KNOWN_KINDS, kind_of


@dataclass(frozen=True)
class FoundText:
    """The files of a text, where they are.

    Attributes:
        name: What to call it, wherever it lay.
        origin: ``kind`` and, of a data set on the hub, ``repo`` and ``commit``.
        sizes: Bytes of the files, by name.
        version: Another one whenever the content is.
        more: Files that are not taken, since those that are hold enough.
        fetch: Brings a file to a folder of this machine, if it is not here, and says where it is.
        has: Whether a file of this name lies beside those of ``sizes``, or is one of them.
        is_remote: Whether it has to come from elsewhere.
    """

    name: str
    origin: dict[str, Any]
    sizes: dict[str, int]
    version: str
    more: int
    fetch: Callable[[str, Path], Path]
    has: Callable[[str], bool]
    is_remote: bool = True


@dataclass(frozen=True)
class Gathered:
    """The files of a text on this machine.

    Attributes:
        paths: By their names: those of the text, and the images that it names.
        images: What was found of images.
    """

    paths: dict[str, Path]
    images: ImagesBeside

    @property
    def files(self) -> list[TextFile]:
        """Those of the text."""
        return [local_file(path, name) for name, path in self.paths.items() if kind_of(name)]

    def open_image(self, name: str) -> BinaryIO | None:
        """Opens an image that the text names; None where it is not there."""
        path = self.paths.get(name)
        return path.open("rb") if path else None


def take_enough(text: Text, sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """The first files, in the order of their names, that hold enough; and how many there are more.

    Raises:
        InvalidInputError: None is of a kind that is known.
    """
    known = {name: sizes[name] for name in sorted(sizes) if kind_of(name)}
    if not known:
        raise InvalidInputError.one(text.name, "holds no file of a kind that is known", KNOWN_KINDS)
    taken: dict[str, int] = {}
    for name, size in known.items():
        if taken and sum(taken.values()) >= text.enough:
            break
        taken[name] = size
    return taken, len(known) - len(taken)
