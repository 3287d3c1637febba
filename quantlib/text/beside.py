"""The image files that a text names, which lie beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from quantlib.text.documents import Illustrated, read_documents
from quantlib.text.files import TextFile
from quantlib.text.formats import RowError
from quantlib.text.windows import POOL_FACTOR, Windowing

_TOKEN_CHARACTERS = 8
"""Few tokens have more; text that comes later becomes no window."""


@dataclass
class ImagesBeside:
    """What the rows of a text that may become windows hold of images.

    Attributes:
        rows: How many have images, all of which are there.
        names: The image files that these name, within the text's folder.
        missing: Of other rows, an image file that is not there.
        met: Whether any row has images, be they there or not.
    """

    met: bool = False
    rows: int = 0
    names: dict[str, None] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def images_beside(
    files: Sequence[TextFile], windowing: Windowing, has: Callable[[str], bool]
) -> ImagesBeside:
    """Looks for images in the first rows of a text, as many as windows are chosen among.

    Args:
        files: Of the text.
        windowing: Which windows will be wanted.
        has: Whether there is a file of such a name in the text's folder.

    Raises:
        InvalidInputError: A file of the text cannot be read.
    """
    found, characters = ImagesBeside(), 0
    for document in read_documents(files, windowing.text_field):
        if not isinstance(document, Illustrated):
            characters += len(document.text)
        else:
            found.met = True
            try:
                named = [each.beside(document.file) for each in document.pictures if each.path]
            except RowError:
                continue  # counted when windows are made
            if missing := next((name for name in named if not has(name)), None):
                found.missing.append(missing)
                continue
            found.rows += 1
            found.names.update(dict.fromkeys(named))
        rows_left = windowing.num_samples * POOL_FACTOR - found.rows
        if rows_left <= 0 or characters >= windowing.pool * _TOKEN_CHARACTERS:
            break
    return found
