"""Rows with images as windows: what a model's own processor makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from PIL import Image

import images
from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
from quantlib.text.files import local_file
from quantlib.text.making import make_samples, make_windows
from quantlib.text.windows import Cut, Windowing

pytest.importorskip("torchvision")  # which the processors of images need

ALL = Windowing(3, 64, 0)


@pytest.fixture(scope="module", params=images.TOKENS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.make(family, tmp_path_factory.mktemp(family), chat_template=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images.picture(1).save(tmp_path / "a.png")
    images.picture(2, 90, 40).save(tmp_path / "b.png")
    return tmp_path


class Text:
    """A text of rows in a folder with images."""

    def __init__(self, folder: Path, model: Path, rows: list[Any], windowing: Windowing) -> None:
        self._path, self._source, self._windowing = (
            folder / "t.jsonl",
            FolderSource(model),
            windowing,
        )
        self._path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._files = [local_file(self._path)]

    def _open(self, name: str) -> Any:
        path = self._path.parent / name
        return path.open("rb") if path.exists() else None

    def cut(self) -> Cut:
        key = f"{self._path.parent} {self._path.read_text()}"
        cut, _ = make_windows(
            "t", key, self._files, self._source, self._windowing, None, self._open
        )
        return cut

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        return make_samples(self._files, self._source, self._windowing, self._open, self.cut())


def shown(*names: str, said: str = "Noise.") -> dict[str, Any]:
    """A conversation about images, as transformers knows them too."""
    parts = [{"type": "image", "image": name} for name in names]
    asked = {"type": "text", "text": "What is it?"}
    return {
        "messages": [
            {"role": "user", "content": [*parts, asked]},
            {"role": "assistant", "content": [{"type": "text", "text": said}]},
        ]
    }


def expected(model: Path, folder: Path, row: dict[str, Any]) -> dict[str, np.ndarray]:
    """What transformers makes of a conversation."""
    from transformers import AutoProcessor

    messages = json.loads(json.dumps(row["messages"]))
    for part in messages[0]["content"]:
        if part["type"] == "image":
            part["image"] = Image.open(folder / part["image"])
    made = AutoProcessor.from_pretrained(model).apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return {name: value.numpy() for name, value in made.items()}


def test_a_conversation_is_what_transformers_makes_of_it(model: Path, folder: Path) -> None:
    rows = [shown("a.png"), shown("b.png", "a.png", said=""), shown("b.png")]
    text = Text(folder, model, rows, ALL)
    cut = text.cut()
    assert cut.tokens.shape == (0, 64)
    assert cut.tally.used == {"messages with images": 3}
    for sample, row in zip(text.samples(), rows, strict=True):
        wanted = expected(model, folder, row)
        assert sample.keys() == wanted.keys()
        for name, value in wanted.items():
            assert np.array_equal(sample[name], value), name
        assert len(sample["input_ids"][0]) <= 64


def test_words_behind_the_last_image_are_cut(model: Path, folder: Path) -> None:
    long = shown("a.png", said="Noise. " * 30)
    windowing = Windowing(1, 64, 0)
    (sample,) = Text(folder, model, [long], windowing).samples()
    whole = expected(model, folder, long)
    assert whole["input_ids"].shape[1] > 200
    for name, value in whole.items():
        beside = value.shape == whole["input_ids"].shape
        assert np.array_equal(sample[name], value[:, :64] if beside else value), name

    few = Windowing(1, 8, 0)  # the image itself takes more
    with pytest.raises(InvalidInputError, match="1 has more tokens up to its last image than a"):
        Text(folder, model, [long], few).cut()


def test_rows_of_both_kinds_and_of_none(model: Path, folder: Path, family: str) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    place = {"conversations": [{"from": "human", "value": "<image> What?"}], "image": "a.png"}
    token = images.TOKENS[family][500]
    own = {"messages": [{"role": "user", "content": f"{token}?"}], "image": "a.png"}
    rows = [
        {"text": "Words alone. " * 30},
        shown("broken.png"),
        shown("none.png"),
        shown("https://a.org/a.png"),
        shown("../a.png"),
        own,
        place,
        {"text": "See <image>.", "image": "b.png"},
    ]
    text = Text(folder, model, rows, Windowing(8, 64, 0))
    cut = text.cut()
    assert cut.tally.used == {
        "text": 1,
        "text with images": 1,
        "conversations with images": 1,
    }
    assert cut.tally.left_out == {
        "an image cannot be read": 1,
        "an image is not there": 1,
        "an image is on the web, which is not read": 1,
        "an image lies outside of the text's folder": 1,
        "the model's own token of an image stands among its words": 1,
    }
    assert len(cut.tokens) + len(cut.illustrated) == 8
    assert len(cut.illustrated) == len(list(text.samples())) == 2
    # The words of a text are the tokenizer's, as those of any text are: BOS, and no template.
    *_, sample = text.samples()
    from transformers import AutoProcessor

    wanted = AutoProcessor.from_pretrained(model)(
        images=[Image.open(folder / "b.png")],
        text=f"See {images.place_of(family)}.",
        return_tensors="pt",
    )
    assert np.array_equal(sample["input_ids"], wanted["input_ids"].numpy())


def test_models_that_have_no_place_for_images(folder: Path, tmp_path: Path) -> None:
    rows = [shown("a.png"), {"text": "Words alone. " * 200}]

    def left_out(model: Path, reason: str) -> None:
        assert Text(folder, model, rows, ALL).cut().tally.left_out == {reason: 1}
        with pytest.raises(InvalidInputError, match="none of its rows can be used") as refused:
            Text(folder, model, rows[:1], ALL).cut()
        assert reason in str(refused.value)

    left_out(zoo.make("llama", tmp_path / "text"), "the model takes no images")
    bare = images.make("qwen3_vl", tmp_path / "bare")
    left_out(bare, "the model has no chat template, which would say where images go")
    (bare / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}{% endfor %}")
    left_out(bare, "the model's chat template has no place for images")
    (bare / "chat_template.jinja").unlink()
    images.make("qwen3_vl", tmp_path / "broken", chat_template=True)
    (tmp_path / "broken" / "processor_config.json").write_text('{"processor_class": "Nothing"}')
    with pytest.raises(InvalidInputError, match="transformers knows no processor of images"):
        Text(folder, tmp_path / "broken", rows, ALL).cut()


def test_no_more_rows_with_images_are_looked_at_than_are_fetched(model: Path, folder: Path) -> None:
    rows = [shown("a.png") for _ in range(20)] + [{"text": "Words alone. " * 200}]
    rows[3] = shown("none.png")
    tally = Text(folder, model, rows, Windowing(2, 64, 0)).cut().tally
    assert tally.used == {"messages with images": 8}
    assert tally.left_out == {"an image is not there": 1}
