import json
from pathlib import Path

import jinja2
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from quantlib.errors import InvalidInputError
from quantlib.text.chat_template import ChatTemplate
from quantlib.text.files import local_file
from quantlib.text.formats import PIECE_CHARACTERS
from quantlib.text.windows import Windowing, Windows, token_windows

DOCUMENTS = [f"Document {number} speaks of the number {number}. " * 40 for number in range(30)]
FOUR = Windowing(4, 32, 0)


@pytest.fixture
def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def write(path: Path, texts: list) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def windows(path: Path, tokenizer: Tokenizer, windowing: Windowing = FOUR, **more) -> np.ndarray:
    template = more.pop("template", None)
    return token_windows("text", [local_file(path)], tokenizer, template, windowing, **more).tokens


def test_windows_are_packed_and_chosen_by_the_seed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(DOCUMENTS))
    stream = tokenizer.encode("".join(DOCUMENTS)).ids
    chunks = {tuple(stream[at : at + 32]) for at in range(0, len(stream) - 31, 32)}
    found = [windows(path, tokenizer, Windowing(4, 32, seed)) for seed in (0, 0, 1)]
    assert all(tuple(row) in chunks for row in found[0].tolist())
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert found[0].shape == (4, 32)
    assert found[0].dtype == np.int64


def test_good_rows_give_the_same_windows_whatever_is_between_them(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    good = write(tmp_path / "good.jsonl", DOCUMENTS)
    mixed = [DOCUMENTS[0], None, *DOCUMENTS[1:3], "\ud83d", "", 3, *DOCUMENTS[3:]]
    dirty = write(tmp_path / "dirty.jsonl", mixed)
    for samples in (1, 4, 40):
        windowing = Windowing(samples, 32, 0)
        wanted = windows(good, tokenizer, windowing)
        assert np.array_equal(windows(dirty, tokenizer, windowing), wanted)


def test_long_documents_have_the_same_tokens_in_pieces(tmp_path: Path, with_bos: Tokenizer) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 4000
    assert len(text) > 2 * PIECE_CHARACTERS
    whole = with_bos.encode(text).ids
    everything = Windowing((len(whole) - 1) // 31, 32, 0)
    for path in (write(tmp_path / "a.jsonl", [text]), tmp_path / "a.txt"):
        if path.suffix == ".txt":
            path.write_text(text)
        found = windows(path, with_bos, everything)
        assert (found[:, 0] == 0).all()
        assert found[:, 1:].flatten().tolist() == whole[1 : found[:, 1:].size + 1]


def test_reading_stops_when_there_is_enough(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [*DOCUMENTS, "x" * 100])
    made = token_windows("text", [local_file(path)], tokenizer, None, FOUR)
    assert made.tally.rows < 5


def begun(stream: list[int], length: int, opening: list[int]) -> list[list[int]]:
    """Windows that begin with ``opening``, written down token by token."""
    rows, rest = [], list(stream)
    while True:
        row = [] if rest[: len(opening)] == opening else list(opening)
        while rest and len(row) < length:
            row.append(rest.pop(0))
        if len(row) < length:
            return rows
        rows.append(row)


def test_documents_have_special_tokens_and_conversations_no_second_ones(
    tmp_path: Path, with_bos: Tokenizer
) -> None:
    template = ChatTemplate(
        jinja2.Template("<s>{% for m in messages %}{{ m.content }}{% endfor %}")
    )
    path = tmp_path / "a.jsonl"
    rows = [{"messages": [{"role": "user", "content": text}]} for text in DOCUMENTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = [with_bos.encode(text, add_special_tokens=False).ids for text in DOCUMENTS]
    wanted = begun([token for each in ids for token in (0, *each)], 32, [0])
    found = windows(path, with_bos, Windowing(len(wanted), 32, 0), template=template)
    assert found.tolist() == wanted
    wanted = begun([token for each in ids for token in (0, *each, 1)], 32, [0])
    found = windows(write(path, DOCUMENTS), with_bos, Windowing(len(wanted), 32, 0))
    assert found.tolist() == wanted


def test_a_window_that_begins_with_a_document_has_one_bos(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    # Every document is as long as a window, so that each begins where the one before was cut.
    text = tokenizer.decode(tokenizer.encode(DOCUMENTS[3], add_special_tokens=False).ids[:31])
    document = tokenizer.encode(text).ids
    assert len(document) == 32
    path = write(tmp_path / "a.jsonl", [text] * 6)
    made = token_windows("text", [local_file(path)], tokenizer, None, Windowing(6, 32, 0))
    assert made.tokens.tolist() == [document] * 6
    assert made.opening == ("<s>",)


def test_models_that_open_a_text_with_two_tokens_have_both_before_every_window(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    tokenizer.post_processor = TemplateProcessing(
        single="<s> </s> $A", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    path = write(tmp_path / "a.jsonl", DOCUMENTS)
    stream = [token for text in DOCUMENTS for token in tokenizer.encode(text).ids]
    made = token_windows("text", [local_file(path)], tokenizer, None, Windowing(9, 32, 0))
    assert made.opening == ("<s>", "</s>")
    assert made.tokens[:, :2].tolist() == [[0, 1]] * 9
    # Cut between the two, the second is not put there again.
    length = 2 + stream.index(0, 1) - 2 + 1
    made = token_windows("text", [local_file(path)], tokenizer, None, Windowing(2, length, 0))
    everything = Windowing(len(begun(stream, length, [0, 1])), length, 0)
    found = windows(path, tokenizer, everything)
    assert found[0].tolist() == stream[:length]
    assert found[1].tolist() == [0, *stream[length : 2 * length - 1]]


def test_what_windows_begin_with_has_to_be_known_to_the_model(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    tokenizer.add_special_tokens(["<|begin|>"])
    tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 512)]
    )
    path = write(tmp_path / "a.jsonl", DOCUMENTS)
    with pytest.raises(InvalidInputError, match=r"text: what its windows begin with: holds the"):
        windows(path, tokenizer, vocabulary=512)


def test_too_few_tokens_says_how_many_there_are(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "short.txt"
    path.write_text("hello " * 20)
    count = len(tokenizer.encode("hello " * 20).ids)
    with pytest.raises(
        InvalidInputError, match=rf"has {count} tokens, but 99 samples of 16 tokens need 1584"
    ):
        windows(path, tokenizer, Windowing(99, 16, 0))
    with pytest.raises(InvalidInputError, match="is empty, but 4 samples"):
        windows(write(tmp_path / "a.jsonl", []), tokenizer)


def test_too_few_tokens_for_windows_with_bos(tmp_path: Path, with_bos: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", ["hello " * 40])
    count = len(with_bos.encode("hello " * 40).ids)
    fitting = (count - 1) // 15
    said = (
        rf"has {count} tokens, but 99 samples of 16 tokens that begin with <s> need 1485; "
        f"give more text, or at most {fitting} samples"
    )
    with pytest.raises(InvalidInputError, match=said):
        windows(path, with_bos, Windowing(99, 16, 0))
    assert windows(path, with_bos, Windowing(fitting, 16, 0)).shape == (fitting, 16)


def test_the_true_reason_where_all_rows_are_bad(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [None, None, ""])
    with pytest.raises(InvalidInputError) as refused:
        windows(path, tokenizer)
    assert str(refused.value).startswith(
        "text: none of its rows can be used: 3 left out: 2 null in text, 1 empty "
        "(a.jsonl row 1: null in text; a.jsonl row 2: null in text; a.jsonl row 3: empty); give "
    )
    few = write(tmp_path / "b.jsonl", ["few words", None])
    with pytest.raises(InvalidInputError, match=r"has \d+ tokens \(1 left out: 1 null in text"):
        windows(few, tokenizer)


def test_a_token_beyond_the_embedding_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens(["<|extra|>"])
    path = write(tmp_path / "a.jsonl", ["some words", "more <|extra|> words", *DOCUMENTS])
    with pytest.raises(
        InvalidInputError,
        match=r"text: a.jsonl row 2: holds the token '<\|extra\|>' with id 512, but the model's "
        "embedding has 512 rows",
    ):
        windows(path, tokenizer, vocabulary=512)
    assert windows(path, tokenizer, vocabulary=513).shape == (4, 32)


def test_documents_end_with_a_token_that_nobody_is_held_to(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"text": DOCUMENTS[0], "kind": "zero"},
        {"text": DOCUMENTS[1] + "</s>"},  # ends as documents do
        {"text": DOCUMENTS[2], "kind": "two"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = [tokenizer.encode(row["text"]).ids for row in rows]
    stream = [*ids[0], 1, *ids[1], *ids[2], 1]
    kinds = [*[0] * len(ids[0]), -1, *[1] * len(ids[1]), *[2] * len(ids[2]), -1]
    count = len(stream) // 32
    made = token_windows(
        "text", [local_file(path)], tokenizer, None, Windowing(count, 32, 0), document_end=1
    )
    assert made.tokens.ravel().tolist() == stream[: count * 32]
    assert made.kinds.ravel().tolist() == kinds[: count * 32]
    assert made.kind_names == ("zero", "text", "two")
    found = Windows(made.tokens, "", False, "", {}, kinds=made.kinds, kind_names=made.kind_names)
    assert np.array_equal(found.predicted, made.kinds[:, 1:] != -1)
    assert found.tokens_by_kind["zero"] == len(ids[0])


def test_conversations_end_so_where_no_bos_parts_them(
    tmp_path: Path, tokenizer: Tokenizer, with_bos: Tokenizer
) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"messages": [{"role": "user", "content": text}]} for text in DOCUMENTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for start, ends in (("", True), ("<s>", False)):
        template = ChatTemplate(jinja2.Template(start + "{{ messages[0].content }}"))
        cut = token_windows(
            "text", [local_file(path)], with_bos, template, Windowing(40, 32, 0), document_end=1
        )
        assert (cut.tokens == 1).any() == ends


def test_many_kinds_are_not_all_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": DOCUMENTS[0][:40], "kind": str(number)} for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = token_windows("text", [local_file(path)], tokenizer, None, Windowing(15, 32, 0))
    assert len(made.kind_names) == 33
    assert made.kind_names[-1] == "others"
