import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from quantlib.calibration.corpus import Text, load_tokenizer, read_documents, token_windows
from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError

DOCUMENTS = [f"Document {number} speaks of the number {number}. " * 40 for number in range(30)]


@pytest.fixture
def tokenizer(tiny_llama: Path):
    return load_tokenizer(FolderSource(tiny_llama))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    lines = "\n".join(json.dumps({"text": text, "id": 1}) for text in DOCUMENTS)
    (tmp_path / "a.jsonl").write_text(lines + "\n\n")
    (tmp_path / "a.txt").write_text("".join(DOCUMENTS))
    parquet.write_table(pa.table({"text": DOCUMENTS, "n": [1] * 30}), tmp_path / "a.parquet")
    return {kind: tmp_path / f"a.{kind}" for kind in ("jsonl", "txt", "parquet")}


def test_every_kind_of_file_gives_the_same_tokens(files: dict[str, Path], tokenizer) -> None:
    windows = {
        kind: token_windows(Text(str(path), "calibration"), tokenizer, 4, 32, 0)
        for kind, path in files.items()
    }
    assert np.array_equal(windows["jsonl"].tokens, windows["parquet"].tokens)
    assert windows["jsonl"].tokens.shape == windows["txt"].tokens.shape == (4, 32)
    assert windows["jsonl"].tokens.dtype == np.int64
    assert not windows["jsonl"].shipped


def test_windows_are_packed_and_chosen_by_the_seed(files: dict[str, Path], tokenizer) -> None:
    text = Text(str(files["txt"]), "calibration")
    stream = tokenizer.encode("".join(DOCUMENTS)).ids
    chunks = {tuple(stream[at : at + 32]) for at in range(0, len(stream) - 31, 32)}
    windows = [token_windows(text, tokenizer, 4, 32, seed) for seed in (0, 0, 1)]
    assert all(tuple(row) in chunks for row in windows[0].tokens.tolist())
    assert windows[0].digest == windows[1].digest != windows[2].digest


def test_a_folder_is_read_file_by_file(files: dict[str, Path]) -> None:
    folder = files["txt"].parent
    assert len(list(read_documents(Text(str(folder), "calibration")))) == 61


def test_the_texts_that_ship_share_nothing(tokenizer) -> None:
    texts = [set(read_documents(Text(None, kind))) for kind in ("calibration", "evaluation")]
    assert all(texts)
    assert not texts[0] & texts[1]
    windows = token_windows(Text(None, "calibration"), tokenizer, 128, 512, 0)
    assert windows.shipped
    assert "ships with quantlib" in windows.source


def test_too_few_tokens_says_how_many_there_are(tmp_path: Path, tokenizer) -> None:
    path = tmp_path / "short.txt"
    path.write_text("hello " * 20)
    count = len(tokenizer.encode("hello " * 20).ids)
    with pytest.raises(
        InvalidInputError, match=rf"has {count} tokens, but 99 samples of 16 tokens need 1584"
    ):
        token_windows(Text(str(path), "calibration"), tokenizer, 99, 16, 0)
    path.write_text("  \n")
    with pytest.raises(InvalidInputError, match="is empty"):
        token_windows(Text(str(path), "calibration"), tokenizer, 4, 16, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"body": "x"}', r"has no text in field 'text' \(fields: body\)"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.jsonl", '{"text": 3}', "has no text in field"),
        ("a.parquet", "nonsense", "cannot be read"),
        ("a.csv", "x", r"holds no .jsonl, .txt, .parquet file"),
        ("missing.txt", None, "there is no such file"),
    ],
)
def test_unreadable_text(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        list(read_documents(Text(str(tmp_path / name), "calibration")))


def test_another_text_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}')
    text = Text(str(tmp_path / "a.jsonl"), "calibration", text_field="body")
    assert list(read_documents(text)) == ["x"]


def test_a_dataset_by_name_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` stands in for itself here: there is no hub to load from."""
    import datasets

    asked: list[tuple] = []

    def load_dataset(*arguments: object, **options: object) -> list[dict[str, str]]:
        asked.append((*arguments, options))
        return [{"text": "one"}, {"text": " "}, {"text": "two"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    text = Text("wikitext:wikitext-2-raw-v1", "calibration", split="validation")
    assert list(read_documents(text)) == ["one", "two"]
    options = {"split": "validation", "streaming": True}
    assert asked == [("wikitext", "wikitext-2-raw-v1", options)]


def test_a_dataset_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("no such dataset")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InvalidInputError, match="nobody/nothing: is no file or folder, and cannot"):
        list(read_documents(Text("nobody/nothing", "calibration")))
