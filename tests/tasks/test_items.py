from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantlib.checks.recipe import parse_recipe
from quantlib.errors import InvalidInputError
from quantlib.task_section import TASKS, TaskSection
from quantlib.tasks.items import SHIPPED, find_items, read_items
from quantlib.tasks.kinds import KINDS, expected_call, options_of, right_letter, tools_of
from quantlib.tasks.scoring import is_valid_call
from quantlib.text.files import local_file
from quantlib.text.places import gather


def shipped(name: str) -> list[dict[str, Any]]:
    task = TaskSection(name=name)
    with gather(find_items(task)) as gathered:
        return read_items(task, gathered.files)


def items_in(path: Path, *rows: Any, task: str = "gsm8k", **fields: Any) -> list[dict[str, Any]]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_items(TaskSection(name=task, **fields), [local_file(path)])


def test_the_recipe_and_the_table_name_the_same_tasks() -> None:
    assert tuple(KINDS) == TASKS
    assert {path.stem for path in SHIPPED.glob("*.jsonl")} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_samples_that_ship_are_items(name: str) -> None:
    items = shipped(name)
    assert 20 <= len(items) <= 50
    prompts = [KINDS[name].prompt(item) for item in items]
    assert len(set(prompts)) == len(prompts)


def test_answers_that_ship_are_right() -> None:
    for item in shipped("gsm8k"):
        sum_, _, number = item["answer"].partition("\n#### ")
        assert eval(sum_.partition(" = ")[0]) == int(number), item
    for item in shipped("humaneval"):
        program = f"{item['prompt']}{item['canonical_solution']}\n{item['test']}"
        exec(f"{program}\ncheck({item['entry_point']})", {})
    for item in shipped("mbpp"):
        exec("\n".join([item["code"], *item["test_list"]]), {})
    for item in shipped("knowledge"):
        assert right_letter(item) in "ABCD"[: len(options_of(item))]
    for item in shipped("tools"):
        assert is_valid_call(expected_call(item), tools_of(item)), item
    for item in shipped("retrieval"):
        assert item["context"].count(item["answer"]) == 1, item["question"]


def test_right_letters_are_not_all_the_same() -> None:
    letters = [right_letter(item) for item in shipped("knowledge")]
    assert all(letters.count(letter) >= 4 for letter in "ABCD")


def test_rows_of_public_data_sets_are_taken(tmp_path: Path) -> None:
    mmlu = {"question": "?", "choices": ["a", "b"], "answer": 1}
    pro = {"question": "?", "options": ["a", "b", "c"], "answer": "C", "answer_index": 2}
    found = items_in(tmp_path / "a.jsonl", mmlu, pro, task="knowledge")
    assert [right_letter(item) for item in found] == ["B", "C"]


def test_so_many_as_are_asked_for(tmp_path: Path) -> None:
    rows = [{"question": str(n), "answer": "#### 1"} for n in range(5)]
    assert len(items_in(tmp_path / "a.jsonl", *rows, samples=3)) == 3


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question": "?"}], "row 1 has no answer (its columns: question)"),
        ([["?"]], "row 1 is no mapping, but list"),
        ([], "holds no row"),
    ],
)
def test_what_are_no_items(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        items_in(tmp_path / "a.jsonl", *rows)
    assert said in str(caught.value)
    assert "gsm8k needs the columns question, answer" in str(caught.value)


def test_a_question_whose_answer_is_not_offered(tmp_path: Path) -> None:
    row = {"question": "?", "options": ["a", "b"], "answer": "C"}
    with pytest.raises(InvalidInputError, match="answer 'C' is none of AB"):
        items_in(tmp_path / "a.jsonl", row, task="knowledge")


def test_a_task_that_is_unknown_and_one_that_is_named_twice() -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_recipe({"tasks": {"run": ["gsm8kk"]}})
    assert "did you mean gsm8k?" in str(caught.value)
    with pytest.raises(InvalidInputError, match="names gsm8k more than once"):
        parse_recipe({"tasks": {"run": ["gsm8k", {"name": "gsm8k", "samples": 3}]}})


def test_items_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such file or folder"):
        find_items(TaskSection(name="gsm8k", dataset=str(tmp_path / "none.jsonl")))
