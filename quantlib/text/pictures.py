"""Images of rows: which they are, and where they stand among the words."""

from __future__ import annotations

import base64
import binascii
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantlib.text.formats import RowError, kind_of

PLACE = "<image>"
"""Stands in a text where an image goes, in data sets like LLaVA's."""

_COLUMNS = ("images", "image")
_PARTS = ("image", "image_url")
_IN_PART = ("image", "image_url", "url", "path", "bytes")
_MOST_SHOWN = 80


@dataclass(frozen=True)
class Picture:
    """An image of a row: its content, or where it is.

    Attributes:
        path: Relative to the file that names it; empty where its content is in the row.
        data: The bytes of an image file.
    """

    path: str = ""
    data: bytes = b""

    def beside(self, file: str) -> str:
        """The name of the image's file, like that of the file which names it.

        Args:
            file: The name of that one, within the text's folder.

        Raises:
            RowError: It would lie outside of the folder.
        """
        name = posixpath.normpath(posixpath.join(posixpath.dirname(file), self.path))
        if posixpath.isabs(self.path) or name.startswith(".."):
            raise RowError("an image lies outside of the text's folder", self.path)
        return name


@dataclass(frozen=True)
class TextWithImages:
    """A text in which :data:`PLACE` stands where images go.

    Attributes:
        text: The text.
        pictures: The images, in this order.
    """

    text: str
    pictures: tuple[Picture, ...]


def is_image_part(part: Any) -> bool:
    """Whether a part of a message is an image."""
    return isinstance(part, Mapping) and part.get("type") in _PARTS


def pictures_beside(row: Mapping[str, Any]) -> list[Picture]:
    """The images in the columns of a row.

    Raises:
        RowError: One of them is none.
    """
    for column in _COLUMNS:
        value = row.get(column)
        if value is not None and value != "":
            return [_picture(each) for each in (value if isinstance(value, list) else [value])]
    return []


def with_pictures(text: str, row: Mapping[str, Any]) -> TextWithImages | None:
    """A text and the images beside it; None where it has no places for any, or none are there.

    Raises:
        RowError: An image is none, or there are more or fewer than places.
    """
    if PLACE not in text or not (pictures := pictures_beside(row)):
        return None
    _require_as_many(text.count(PLACE), len(pictures))
    return TextWithImages(text, tuple(pictures))


def arranged(
    messages: Sequence[dict[str, Any]], row: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], tuple[Picture, ...]]:
    """Messages whose images stand in their places, as chat templates know them.

    Images of the row's columns go where parts of type ``image`` have no image of their own, or
    where :data:`PLACE` stands; where there is no place at all, before the user's first message.

    Args:
        messages: Their contents are text, or lists of parts.
        row: The columns beside the messages.

    Returns:
        The messages, and the images in the order of their places.

    Raises:
        RowError: An image is none, or there are more or fewer than places.
    """
    beside = pictures_beside(row)
    if not beside and all(not isinstance(message["content"], list) for message in messages):
        return list(messages), ()
    spread = [_spread(message) if beside else message for message in messages]
    places = [
        (part, _own(part))
        for message in spread
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] in _PARTS
    ]
    if not places:
        return _first(spread, len(beside)), tuple(beside)
    _require_as_many(sum(own is None for _, own in places), len(beside))
    waiting = iter(beside)
    pictures = tuple(next(waiting) if own is None else own for _, own in places)
    return [_bare(message) for message in spread], pictures


def _require_as_many(places: int, pictures: int) -> None:
    if places != pictures:
        raise RowError(
            "has not as many images as places for them", f"{pictures} for {places} places"
        )


def _spread(message: dict[str, Any]) -> dict[str, Any]:
    """A message with parts for the places in its text."""
    content = message["content"]
    if not isinstance(content, str) or PLACE not in content:
        return message
    first, *others = content.split(PLACE)
    parts = [{"type": "text", "text": first}]
    for text in others:
        parts += [{"type": "image"}, {"type": "text", "text": text}]
    kept = [part for part in parts if part["type"] == "image" or part["text"].strip()]
    return message | {"content": kept}


def _first(messages: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Messages with places for images before the user's first one."""
    for at, message in enumerate(messages):
        if message["role"] == "user":
            content = message["content"]
            parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
            shown = message | {"content": [{"type": "image"}] * count + parts}
            return [*messages[:at], shown, *messages[at + 1 :]]
    raise RowError("has images, but no place for them and no message of a user")


def _bare(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose images are places alone."""
    content = message["content"]
    if not isinstance(content, list):
        return message
    parts = [{"type": "image"} if part["type"] in _PARTS else part for part in content]
    return message | {"content": parts}


def _own(part: Mapping[str, Any]) -> Picture | None:
    """The image that a part holds; None where it is a place for one."""
    held = [part[name] for name in _IN_PART if part.get(name) is not None]
    return _picture(held[0]) if held else None


def _picture(value: Any) -> Picture:
    if isinstance(value, Mapping):
        held = [value[name] for name in ("bytes", *_IN_PART) if value.get(name)]
        value = held[0] if held else None
    if isinstance(value, bytes):
        return Picture(data=value)
    if not isinstance(value, str):
        raise RowError("an image is of no known form", type(value).__name__)
    if value.startswith(("http://", "https://")):
        raise RowError("an image is on the web, which is not read", value[:_MOST_SHOWN])
    if value.startswith("data:"):
        return Picture(data=_decoded(value))
    path = value.removeprefix("file://")
    if not path or kind_of(path):
        raise RowError("an image is no file of an image", path[:_MOST_SHOWN])
    return Picture(path=path)


def _decoded(url: str) -> bytes:
    header, comma, content = url.partition(",")
    try:
        if not comma or not header.endswith(";base64"):
            raise ValueError
        return base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error):
        raise RowError("an image is no data: URL in base64", url[:_MOST_SHOWN]) from None
