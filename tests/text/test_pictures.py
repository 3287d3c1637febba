"""Which images a row has, and where they stand among its words."""

import base64
from typing import Any

import pytest

from quantlib.text.conversations import Conversation
from quantlib.text.formats import Fault, RowError
from quantlib.text.pictures import Picture, TextWithImages
from quantlib.text.rows import recognize

IMAGE = {"type": "image"}
ASKED = {"type": "text", "text": "What is it?"}
A, B = Picture(path="a.png"), Picture(path="b.png")


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def found(row: Any) -> Conversation:
    recognized = recognize(row, None)
    assert not isinstance(recognized, Fault), recognized
    assert isinstance(recognized[1], Conversation)
    return recognized[1]


def refused(row: Any) -> str:
    fault = recognize(row, None)
    assert isinstance(fault, Fault)
    return fault.reason


@pytest.mark.parametrize(
    ("part", "picture"),
    [
        ({"type": "image", "image": "a.png"}, A),
        ({"type": "image", "path": "a.png"}, A),
        ({"type": "image", "url": "file://a.png"}, A),
        ({"type": "image_url", "image_url": {"url": "a.png"}}, A),
        ({"type": "image_url", "image_url": "a.png"}, A),
        (
            {
                "type": "image_url",
                "image_url": {"url": f"data:image/png;base64,{base64.b64encode(b'PNG').decode()}"},
            },
            Picture(data=b"PNG"),
        ),
        ({"type": "image", "image": {"bytes": b"PNG", "path": "a.png"}}, Picture(data=b"PNG")),
        ({"type": "image", "image": {"bytes": None, "path": "a.png"}}, A),
    ],
)
def test_images_in_messages(part: dict[str, Any], picture: Picture) -> None:
    conversation = found({"messages": [user(part, ASKED)]})
    assert conversation.pictures == (picture,)
    assert conversation.messages == [user(IMAGE, ASKED)]


@pytest.mark.parametrize("column", ["image", "images"])
def test_images_beside_messages_stand_where_these_have_places(column: str) -> None:
    both: Any = ["a.png", {"path": "b.png"}]
    spread = found({"messages": [user(IMAGE, ASKED, IMAGE)], column: both})
    assert (spread.messages, spread.pictures) == ([user(IMAGE, ASKED, IMAGE)], (A, B))
    turns = [
        {"from": "human", "value": "<image>\nWhat is it? <image>"},
        {"from": "gpt", "value": "Noise."},
    ]
    shared = found({"conversations": turns, column: both})
    assert shared.pictures == (A, B)
    assert shared.messages == [
        user(IMAGE, {"type": "text", "text": "\nWhat is it? "}, IMAGE),
        {"role": "assistant", "content": "Noise."},
    ]
    unplaced = found({"messages": [{"role": "user", "content": "What is it?"}], column: "a.png"})
    assert (unplaced.messages, unplaced.pictures) == ([user(IMAGE, ASKED)], (A,))
    mixed = found({"messages": [user(IMAGE, {"type": "image", "image": "b.png"})], column: "a.png"})
    assert mixed.pictures == (A, B)


def test_a_text_with_places_and_images() -> None:
    row = {"text": "First <image>, then <image>.", "images": ["a.png", "b.png"]}
    assert recognize(row, None) == ("text", TextWithImages(row["text"], (A, B)))
    # Words about tags, and captions of images that are not asked for, are text.
    for plain in ({"text": "The tag <image>."}, {"text": "A caption.", "image": "a.png"}):
        assert recognize(plain, None) == ("text", plain["text"])


def test_conversations_without_images_are_what_they_were() -> None:
    conversation = found({"messages": [user(ASKED, "And where?")], "images": []})
    assert conversation.messages == [{"role": "user", "content": "What is it?And where?"}]
    assert conversation.pictures == ()


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image", "image": "https://a.org/a.png"}, "an image is on the web, which is"),
        ({"type": "image_url", "image_url": {"url": "http://a.org/a"}}, "an image is on the web"),
        ({"type": "image", "image": "data:image/png;base64,?"}, "an image is no data: URL in"),
        ({"type": "image", "image": 3}, "an image is of no known form"),
        ({"type": "image", "image": "other.jsonl"}, "an image is no file of an image"),
        ({"type": "image"}, "has not as many images as places for them"),
        ({"type": "video", "video": "a.mp4"}, "a message holds more than text"),
    ],
)
def test_images_that_are_none(part: dict[str, Any], reason: str) -> None:
    assert refused({"messages": [user(part, {"type": "image", "image": "a.png"})]}).startswith(
        reason
    )


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "<image><image>"}], "image": "a.png"},
        {"messages": [user(IMAGE)], "images": ["a.png", "b.png"]},
        {"text": "<image>", "images": ["a.png", "b.png"]},
    ],
)
def test_other_images_than_places(row: dict[str, Any]) -> None:
    assert refused(row) == "has not as many images as places for them"


def test_images_lie_beside_their_text() -> None:
    assert A.beside("text.jsonl") == "a.png"
    assert Picture(path="../shown/./a.png").beside("rows/text.jsonl") == "shown/a.png"
    for path in ("../a.png", "/etc/a.png", "x/../../a.png"):
        with pytest.raises(RowError, match="lies outside of the text's folder"):
            Picture(path=path).beside("text.jsonl")
