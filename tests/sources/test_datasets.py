"""Texts in data sets on a hub, and in object storage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantlib.checks.recipe import parse_recipe
from quantlib.errors import InvalidInputError, StepError
from quantlib.steps.texts import bring_texts, files_of, input_of
from quantlib.store import LocalStore, Receipt, open_store
from quantlib.text.addresses import Text
from quantlib.text.documents import read_documents
from quantlib.text.places import find_text

CARD = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/*.jsonl}
  - {split: test, path: [small/held/a.json]}
- config_name: large
  data_dir: big
---
# A data set
"""


def line(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


@pytest.fixture
def dataset(hub) -> None:
    hub.dataset = True
    hub.files = {
        "data/train-00000.jsonl": line("train 0"),
        "data/train-00001.jsonl": line("train 1"),
        "data/test.jsonl": line("test"),
        "script.py": b"raise SystemExit",
    }


def found(dataset: str, split: str = "train") -> list[str]:
    return list(find_text(Text(dataset, "calibration", split, 1)).sizes)


def brought(store: LocalStore, dataset: str) -> Receipt:
    recipe = parse_recipe({"calibration": {"dataset": dataset}})
    return input_of(store, bring_texts(store, recipe), "calibration")


def documents(store: LocalStore, text: Receipt) -> list[str]:
    return [piece.text for piece in read_documents(files_of(store, text))]


@pytest.mark.usefixtures("dataset")
def test_a_data_set_is_brought_at_its_commit(hub, store) -> None:
    text = brought(store, "hf://datasets/org/tiny@main/data")
    assert documents(store, text) == ["test", "train 0", "train 1"]
    assert text.parameters["origin"] == {"kind": "hub", "repo": "org/tiny", "commit": hub.commit}
    assert text.parameters["name"] == f"hf://datasets/org/tiny@{hub.commit}"
    assert brought(store, f"hf://datasets/org/tiny@{hub.commit}/data") == text
    assert not any("script.py" in path for _, path, _, _ in hub.requests)


@pytest.mark.usefixtures("dataset")
def test_images_that_rows_name_are_brought_too(hub, store) -> None:
    shown = [{"role": "user", "content": [{"type": "image", "image": "../shown/a.png"}]}]
    hub.files = {
        "data/rows.jsonl": json.dumps({"messages": shown}).encode(),
        "shown/a.png": b"an image",
        "shown/b.png": b"another",
    }
    text = brought(store, "hf://datasets/org/tiny@main/data/rows.jsonl")
    assert set(text.files) == {"data/rows.jsonl", "shown/a.png"}
    assert store.read(text.path("shown/a.png")) == b"an image"
    assert [file.name for file in files_of(store, text)] == ["data/rows.jsonl"]


@pytest.mark.usefixtures("dataset")
def test_files_are_those_of_the_split(hub) -> None:
    for name in ("org/tiny", "hf://datasets/org/tiny", "hf://datasets/org/tiny@refs%2Fpr%2F1"):
        assert found(name) == ["data/train-00000.jsonl", "data/train-00001.jsonl"]
    assert found("org/tiny", "test") == ["data/test.jsonl"]
    assert found("hf://datasets/org/tiny@refs/convert/parquet/data/test.jsonl") == [
        "data/test.jsonl"
    ]
    with pytest.raises(
        InvalidInputError, match="has no files of the split 'validation'; set split"
    ):
        found("org/tiny", "validation")
    hub.files = {"a.jsonl": line("a"), "b.csv": b"text\nb\n"}
    assert found("org/tiny") == ["a.jsonl", "b.csv"]


@pytest.mark.usefixtures("dataset")
def test_files_are_those_that_the_card_lists(hub) -> None:
    names = ("small/a.jsonl", "small/held/a.json", "big/train.jsonl", "big/test.jsonl")
    hub.files = {name: line(name) for name in names} | {"README.md": CARD.encode()}
    assert found("org/tiny:small") == ["small/a.jsonl"]
    assert found("org/tiny:small", "test") == ["small/held/a.json"]
    assert found("org/tiny:large", "test") == ["big/test.jsonl"]
    with pytest.raises(InvalidInputError, match=r"several configurations; .*small, large"):
        found("org/tiny")
    with pytest.raises(InvalidInputError, match=r"no configuration 'other'; .*small, large"):
        found("org/tiny:other")


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/other", "hf://datasets/org/other@main: is not on http"),
        ("hf://datasets/org/tiny@v2", "has no revision 'v2'"),
        ("hf://datasets/org/tiny@main/none.jsonl", "has no none.jsonl at c0ffee"),
        ("hf://datasets/org/tiny@main/script.py", "refs/convert/parquet"),
        ("hf://org/tiny", "is no data set on the hub; give hf://datasets/org/name"),
        ("ftp://x/y.jsonl", "unsupported kind of address"),
        ("./none.jsonl", "there is no such file or folder"),
        ("none.csv.zst", "there is no such file or folder"),
        ("what is this?", "there is no such file or folder"),
        ("~nobody-here/x.jsonl", "is no path"),
    ],
)
def test_what_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        found(name)
    assert message in str(refused.value)


@pytest.mark.usefixtures("dataset")
def test_a_hub_that_does_not_answer(hub, store) -> None:
    hub.gated = True
    with pytest.raises(InvalidInputError, match="is gated"):
        brought(store, "org/tiny")
    hub.token = "hf_secret"
    with pytest.raises((InvalidInputError, StepError), match="HF_TOKEN"):
        brought(store, "org/tiny")


def test_texts_in_object_storage(store, s3_address: str) -> None:
    bucket = open_store(f"{s3_address}/texts")
    bucket.put_bytes(line("one"), "a/one.jsonl")
    bucket.put_bytes(line("two"), "a/more/Two.JSONL")
    bucket.put_bytes(b"not taken", "a/notes.md")
    assert documents(store, brought(store, f"{s3_address}/texts/a")) == ["two", "one"]
    one = brought(store, f"{s3_address}/texts/a/one.jsonl")
    assert documents(store, one) == ["one"]
    version = find_text(Text(f"{s3_address}/texts/a", "calibration", "train", 1)).version
    bucket.put_bytes(line("uno"), "a/one.jsonl")
    assert find_text(Text(f"{s3_address}/texts/a", "calibration", "train", 1)).version != version
    assert brought(store, f"{s3_address}/texts/a/one.jsonl").key != one.key
    for missing in ("none", "a/none.jsonl"):
        with pytest.raises(InvalidInputError, match="there is no such file or folder"):
            brought(store, f"{s3_address}/texts/{missing}")


def test_one_text_in_three_places_is_one_text(store, s3_address: str, tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_bytes(line("one"))
    open_store(s3_address).put_bytes(line("one"), "a.jsonl")
    places = (f"{tmp_path}/here/a.jsonl", f"{tmp_path}/there", f"{s3_address}/a.jsonl")
    first, *others = [brought(store, place) for place in places]
    assert [other.key for other in others] == [first.key, first.key]


def test_enough_files_are_taken(
    store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("quantlib.text.addresses.ENOUGH_BYTES", 40)
    monkeypatch.setattr("quantlib.text.addresses._TOKEN_BYTES", 0)
    for number in range(5):
        (tmp_path / f"{number}.jsonl").write_bytes(line(f"document {number}"))
    (tmp_path / ".hidden.jsonl").write_bytes(line("hidden"))
    text = brought(store, str(tmp_path))
    assert documents(store, text) == ["document 0", "document 1"]
    assert text.parameters["name"] == "0.jsonl and 4 more files"
    assert "3 more are not taken, these are enough" in capsys.readouterr().err
