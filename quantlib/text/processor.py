"""The processor of a model that takes images: from text and images to what its forward is given."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError
from quantlib.runtime.distribution import pip_install
from quantlib.text.chat_template import BrokenTemplateError, ChatTemplate
from quantlib.text.conversations import Conversation
from quantlib.text.documents import Illustrated
from quantlib.text.formats import Fault, RowError
from quantlib.text.pictures import Picture
from quantlib.text.tokenizer import CONFIG, TOKENIZER_FILES

Sample = dict[str, np.ndarray]
"""What a model's forward is given of one document with images, by the argument's name: token ids
``[1, tokens]`` and what lies beside them, pixels in float32, shapes of images."""

OpenImage = Callable[[str], BinaryIO | None]
"""Opens an image beside a text by its name; None where it is not there."""

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_OTHER_FILES = ("video_preprocessor_config.json", CONFIG)
_TOKEN_FIELDS = ("image_token_id", "image_token_index")
"""Of a model's config: the token in whose places its forward puts what it makes of images."""

_IDS = "input_ids"

NO_IMAGES = Fault("the model takes no images")
NOT_JUDGED = Fault("holds images, and models are judged on text")
NOT_THERE = Fault("an image is not there")
_NO_TEMPLATE = Fault("the model has no chat template, which would say where images go")
_NO_PLACE = Fault("the model's chat template has no place for images")


def has_processor(source: FileSource) -> bool:
    """Whether a model says how images are prepared for it."""
    return any(name in source.names() for name in _PROCESSOR_FILES)


def processor_digests(source: FileSource) -> dict[str, str]:
    """The sha256 of each file, beside the tokenizer's, that decides what becomes of images."""
    wanted = (*_PROCESSOR_FILES, *_OTHER_FILES)
    return {
        name: hashlib.sha256(source.read(name)).hexdigest()
        for name in source.names()
        if name in wanted
    }


class Processor:
    """A model's own processor, as transformers has it.

    Attributes:
        place: What the model's text has where an image goes.
    """

    def __init__(self, source: FileSource, template: ChatTemplate, open_image: OpenImage) -> None:
        """Loads it, without any code that the model brings.

        Args:
            source: The model.
            template: Its chat template.
            open_image: Opens the images of the text.

        Raises:
            InvalidInputError: transformers cannot load it.
            RowError: The chat template has no place for images.
        """
        self._processor = _load(source)
        self._open = open_image
        tokenizer = self._processor.tokenizer
        self.place = _place_of(template, tokenizer)
        self._tokens = {token for token in tokenizer.get_added_vocab() if token in self.place}
        config = json.loads(bytes(source.read(CONFIG)))
        for number in map(config.get, _TOKEN_FIELDS):
            if isinstance(number, int):
                self._tokens.add(str(tokenizer.convert_ids_to_tokens(number)))

    def __call__(self, document: Illustrated, most: int) -> Sample:
        """What the model is given of a document, cut behind its last image where it is too long.

        Args:
            document: Its text has :attr:`place` where images go.
            most: How many tokens it may have.

        Raises:
            RowError: It cannot be used: an image is not there or broken, the processor refuses it,
                or it is too long.
        """
        words = document.text.replace(self.place, "")
        if any(token in words for token in self._tokens):
            raise RowError("the model's own token of an image stands among its words")
        images = [self._image(picture, document.file) for picture in document.pictures]
        try:
            made = self._processor(
                images=images,
                text=document.text,
                return_tensors="pt",
                add_special_tokens=document.plain,
            )
        except Exception as error:  # of whatever the model's own settings come to
            raise RowError("the model's processor refuses it", _first_line(error)) from None
        sample = {name: value.numpy() for name, value in made.items() if hasattr(value, "numpy")}
        return self._cut(sample, document.text, most)

    def _image(self, picture: Picture, file: str) -> Any:
        from PIL import Image, ImageOps

        name = picture.beside(file) if picture.path else ""
        stream = self._open(name) if name else io.BytesIO(picture.data)
        if stream is None:
            raise RowError(NOT_THERE.reason, name)
        try:
            with stream, Image.open(stream) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # decoders raise what they like
            raise RowError("an image cannot be read", name or _first_line(error)) from None

    def _cut(self, sample: Sample, text: str, most: int) -> Sample:
        ids = sample[_IDS]
        length = ids.shape[1]
        if length <= most:
            return sample
        # Words behind the last image are as many tokens as they are alone.
        rest = text.rpartition(self.place)[2]
        behind = self._processor.tokenizer(rest, add_special_tokens=False)[_IDS]
        if length - len(behind) > most or not np.array_equal(
            ids[0, length - len(behind) :], behind
        ):
            raise RowError("has more tokens up to its last image than a window", f"{length}")
        return {
            name: value[:, :most] if value.shape == ids.shape else value
            for name, value in sample.items()
        }


def processor_of(
    source: FileSource, template: ChatTemplate | None, open_image: OpenImage
) -> Processor | Fault:
    """The processor of a model; or why its text can have no images.

    Args:
        source: The model.
        template: Its chat template.
        open_image: Opens the images of the text.

    Raises:
        InvalidInputError: transformers cannot load it.
    """
    if not has_processor(source):
        return NO_IMAGES
    if template is None:
        return _NO_TEMPLATE
    try:
        return Processor(source, template, open_image)
    except RowError as error:
        return error.fault


def _load(source: FileSource) -> Any:
    from transformers import AutoProcessor

    wanted = {*TOKENIZER_FILES, *_PROCESSOR_FILES, *_OTHER_FILES}
    where = next(source.describe(name) for name in source.names() if name in _PROCESSOR_FILES)
    with tempfile.TemporaryDirectory() as folder:
        for name in source.names():
            if name in wanted:
                Path(folder, name).write_bytes(source.read(name))
        try:
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        except ImportError:
            raise InvalidInputError.one(
                where,
                "the model's processor of images needs packages that are not installed",
                pip_install("images"),
            ) from None
        except Exception as error:  # of whatever library its parts come from
            raise InvalidInputError.one(
                where,
                f"transformers cannot load the model's processor: {_first_line(error)}",
            ) from None
    if not hasattr(processor, "image_processor"):  # it gives a tokenizer where it knows none
        raise InvalidInputError.one(where, "transformers knows no processor of images for it")
    return processor


def _place_of(template: ChatTemplate, tokenizer: Any) -> str:
    """What a chat template writes for an image: what a message has more than one without it.

    Raises:
        RowError: It writes no token of the tokenizer's own.
    """
    text = {"type": "text", "text": "."}
    contents: Sequence[list[dict[str, str]]] = ([{"type": "image"}, text], [text])
    try:
        shown, bare = (
            template.render(Conversation([{"role": "user", "content": content}]))
            for content in contents
        )
    except (RowError, BrokenTemplateError):
        raise RowError(_NO_PLACE.reason) from None
    pairs = zip(shown, bare, strict=False)
    before = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    place = shown[before : before + len(shown) - len(bare)].strip()
    if not place or not any(token in place for token in tokenizer.get_added_vocab()):
        raise RowError(_NO_PLACE.reason)
    return place


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
