from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
from quantlib.task_section import TasksSection
from quantlib.tasks.prepared import prepare

ITEMS = {
    "gsm8k": [{"question": "What is 1 + 1?", "answer": "#### 2"}],
    "retrieval": [{"context": "The code is 7.", "question": "What is the code?", "answer": "7"}],
}
SECTION = TasksSection.model_validate(
    {"run": [{"name": name, "max_tokens": 100} for name in ITEMS]}
)
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture
def model(make_model: Any, tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", "llama", max_position_embeddings=1024)


def test_a_model_without_a_template_gets_the_bare_text(model: Path, tmp_path: Path) -> None:
    found = prepare(SECTION, ITEMS, FolderSource(model))
    assert not found.chat
    assert found.context == 256, "of the longest item with its answer, in steps of 256"
    found.write("gsm8k", tmp_path / "items.jsonl")
    assert json.loads((tmp_path / "items.jsonl").read_text()) == ITEMS["gsm8k"][0]


def test_a_model_with_one_is_asked_through_it(model: Path) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATE)
    assert prepare(SECTION, ITEMS, FolderSource(model)).chat


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('only tools may speak') }}", "only tools may speak"),
        ("{{ messages[0]['content']['parts'] + 1 }}", "no attribute 'parts'"),
    ],
)
def test_a_template_that_fails_is_said_by_every_task(model: Path, template: str, said: str) -> None:
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(InvalidInputError) as caught:
        prepare(SECTION, ITEMS, FolderSource(model))
    assert [problem.where for problem in caught.value.problems] == [
        "tasks.gsm8k: item 1",
        "tasks.retrieval: item 1",
    ]
    assert said in str(caught.value)


def test_answers_that_are_longer_than_what_the_model_reads(model: Path) -> None:
    section = TasksSection.model_validate({"run": [{"name": "gsm8k", "max_tokens": 1000}]})
    with pytest.raises(InvalidInputError, match="with answers of 1000, and the model reads 1024"):
        prepare(section, ITEMS, FolderSource(model))
