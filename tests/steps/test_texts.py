import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
from quantlib.recipe import Recipe
from quantlib.steps.calibrate import calibrate
from quantlib.steps.fetch import fetch
from quantlib.steps.plan import plan
from quantlib.steps.texts import bring_texts, input_of, windows_without_store
from quantlib.steps.windows import read_windows
from quantlib.store import LocalStore, Receipt
from quantlib.store.hashing import hash_file

MakeRecipe = Callable[..., Recipe]
DOCUMENTS = [f"Document {number} speaks of the number {number}. " * 10 for number in range(200)]


def write(path: Path, texts: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def calibrated(store: LocalStore, recipe: Recipe, model: Receipt) -> Receipt:
    planned = plan(store, recipe, model, bring_texts(store, recipe), 0)
    return calibrate(store, recipe, model, planned, "cpu")


def test_steps_go_by_what_a_text_says_and_not_by_where_it_is(
    store: LocalStore, tiny_llama: Path, small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    model = fetch(store, str(tiny_llama))
    path = write(tmp_path / "a" / "prompts.jsonl", DOCUMENTS)
    recipe = small_recipe(calibration={"dataset": path})
    first = calibrated(store, recipe, model)
    same = small_recipe(calibration={"dataset": write(tmp_path / "b" / "prompts.jsonl", DOCUMENTS)})
    assert calibrated(store, same, model) == first
    write(tmp_path / "a" / "prompts.jsonl", DOCUMENTS[::-1])
    other = calibrated(store, recipe, model)
    assert other.key != first.key
    assert other.facts["text"]["digest"] != first.facts["text"]["digest"]
    assert str(tmp_path) not in first.to_json().decode()


def test_steps_read_the_store_only(
    store: LocalStore, tiny_llama: Path, small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    path = Path(write(tmp_path / "prompts.jsonl", DOCUMENTS))
    recipe = small_recipe(calibration={"dataset": str(path)})
    texts = bring_texts(store, recipe)
    text = input_of(store, texts, "calibration")
    # Written on in place, as an editor does: the store has a copy.
    with path.open("r+") as file:
        file.write("changed")
    local = store.local_path(text.path("prompts.jsonl"))
    assert hash_file(local) == text.files["prompts.jsonl"].sha256
    path.unlink()
    model = fetch(store, str(tiny_llama))
    planned = plan(store, recipe, model, texts, 0)
    receipt = calibrate(store, recipe, model, planned, "cpu")
    assert receipt.facts["text"]["source"] == "prompts.jsonl"
    assert receipt.facts["text"]["content"] == text.facts["digest"]
    assert receipt.facts["text"]["read"]["used"] == {"text": receipt.facts["text"]["read"]["rows"]}


def test_windows_are_made_once(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import quantlib.text.making as making

    made: list[str] = []

    def counted(name: str, *arguments: Any) -> Any:
        made.append(name)
        return original(name, *arguments)

    original = making.token_windows
    monkeypatch.setattr(making, "token_windows", counted)
    monkeypatch.setattr(making, "_made", {})
    path = write(tmp_path / "prompts.jsonl", DOCUMENTS)
    recipe = small_recipe(calibration={"dataset": path}, validation={"dataset": path})
    wanted = windows_without_store(recipe.validation, FolderSource(tiny_llama))
    texts, model = bring_texts(store, recipe), fetch(store, str(tiny_llama))
    planned = plan(store, recipe, model, texts, 0)
    calibrate(store, recipe, model, planned, "cpu")
    found = read_windows(store, input_of(store, planned, "evaluation"))
    assert np.array_equal(found.tokens, wanted.tokens)
    assert found.digest == wanted.digest
    assert found.tokens.shape == (64, 64)
    # Once without the embedding's rows, which only a benchmark and promotion do not know.
    assert len(made) == 3
    made.clear()
    plan(store, recipe, model, texts, 2)
    assert not made


def test_what_windows_begin_with_is_in_receipts_and_said(
    store: LocalStore,
    make_model: Any,
    small_recipe: MakeRecipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = small_recipe()
    texts = bring_texts(store, recipe)
    for number, opening in enumerate(([], ["<s>"])):
        folder = make_model(tmp_path / f"m{number}", num_hidden_layers=1)
        if opening:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.post_processor = TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 0)]
            )
            tokenizer.save(str(folder / "tokenizer.json"))
        capsys.readouterr()
        planned = plan(store, recipe, fetch(store, str(folder)), texts, 0)
        said = capsys.readouterr().err
        assert said.count("; every window begins with <s>\n") == 2 * len(opening)
        for purpose in ("calibration", "evaluation"):
            windowed = input_of(store, planned, purpose)
            assert windowed.facts["opening"] == opening
            windows = read_windows(store, windowed)
            assert (windows.tokens[:, 0] == 0).all() == bool(opening)
        calibration = calibrate(store, recipe, fetch(store, str(folder)), planned, "cpu")
        assert calibration.facts["text"]["opening"] == opening


CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"


def test_what_is_written_follows_the_template_and_is_said(
    store: LocalStore,
    make_model: Any,
    small_recipe: MakeRecipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, chat = (make_model(tmp_path / name, num_hidden_layers=1) for name in ("base", "chat"))
    (chat / "chat_template.jinja").write_text(CHATML)
    recipe = small_recipe()
    texts, digests = bring_texts(store, recipe), set()
    for folder, words in (
        (base, "text, for the model has no chat template; documents end with </s>"),
        (chat, "conversations as the model's chat template writes them; documents end with </s>"),
    ):
        model = fetch(store, str(folder))
        capsys.readouterr()
        planned = plan(store, recipe, model, texts, 0)
        assert capsys.readouterr().err.count(words) == 2
        text = calibrate(store, recipe, model, planned, "cpu").facts["text"]
        assert text["written"] == words
        assert 0 < sum(text["kinds"].values()) <= text["tokens"]
        digests.add(text["digest"])
    assert len(digests) == 2


def test_plan_refuses_what_no_template_writes(
    store: LocalStore, make_model: Any, small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    base, broken = (make_model(tmp_path / name, num_hidden_layers=1) for name in ("base", "broken"))
    (broken / "chat_template.jinja").write_text(CHATML + "\n{{ persona.name }}")
    for folder, content, said in (
        (base, "conversations", "the model has no chat template to write them by"),
        (
            broken,
            "auto",
            "calibration.jsonl row 1: the model's chat template fails on it: line 3 of the chat "
            "template: UndefinedError: 'persona' is undefined",
        ),
    ):
        recipe = small_recipe(calibration={"content": content})
        model = fetch(store, str(folder))
        with pytest.raises(InvalidInputError) as refused:
            plan(store, recipe, model, bring_texts(store, recipe), 0)
        assert said in str(refused.value)
        as_text = small_recipe(calibration={"content": "text"}, validation={"content": "text"})
        plan(store, as_text, model, bring_texts(store, as_text), 0)


def test_a_method_that_reads_no_text_needs_none(
    store: LocalStore, small_recipe: MakeRecipe
) -> None:
    recipe = small_recipe(quantization={"method": "minmax"}, calibration={"dataset": "./none.txt"})
    assert list(bring_texts(store, recipe).inputs) == ["evaluation"]


def test_all_texts_that_are_not_there_are_named_at_once(
    store: LocalStore, small_recipe: MakeRecipe
) -> None:
    recipe = small_recipe(
        calibration={"dataset": "./none.jsonl"}, validation={"dataset": "./nothing"}
    )
    with pytest.raises(InvalidInputError) as refused:
        bring_texts(store, recipe)
    assert [problem.where for problem in refused.value.problems] == ["./none.jsonl", "./nothing"]
    assert not list(store.list())


def test_plan_refuses_tokens_that_the_model_has_no_embedding_of(
    store: LocalStore, make_model: Any, small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model", vocab_size=500)
    path = write(tmp_path / "prompts.jsonl", DOCUMENTS)
    recipe = small_recipe(
        calibration={"dataset": path}, validation={"prompts": ["Document 3 speaks"]}
    )
    texts, model = bring_texts(store, recipe), fetch(store, str(folder))
    with pytest.raises(InvalidInputError) as refused:
        plan(store, recipe, model, texts, 0)
    said = str(refused.value)
    assert "but the model's embedding has 500 rows" in said
    assert "the evaluation text that ships with quantlib: evaluation.jsonl row 1: holds" in said
