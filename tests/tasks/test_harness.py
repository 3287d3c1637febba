"""lm-eval in its own process, against a server that knows the answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from loopback import answering

from quantlib.errors import InvalidInputError, StepError
from quantlib.task_section import TASKS, TaskSection
from quantlib.tasks import harness as module
from quantlib.tasks.harness import Harness, Request, harness, harness_version
from quantlib.tasks.items import find_items, read_items
from quantlib.tasks.kinds import KINDS
from quantlib.text.places import gather

pytest.importorskip("lm_eval", reason="needs the extra tasks")

FOLLOWED = "Rain falls on the roofs and the streets shine"
"""Has no comma, as the first item of ifeval wants it."""


def right(name: str, item: dict[str, Any]) -> str:
    """An answer that scores."""
    match name:
        case "gsm8k":
            return f"That makes {item['answer'].rpartition('#### ')[2]}."
        case "humaneval":
            return f"```python\n{item['prompt']}{item['canonical_solution']}```"
        case "mbpp":
            return f"```python\n{item['code']}```"
        case "knowledge":
            return f"<think>A, or B?</think>The answer is ({item['answer']})."
        case "tools":
            return f"<tool_call>{json.dumps(item['answer'])}</tool_call>"
        case "retrieval":
            return f"It is {item['answer']}."
    return FOLLOWED


class Chat:
    """A server that answers from a table; what it does not know it answers with nothing."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.fails = False


@pytest.fixture
def chat() -> Chat:
    return Chat()


@pytest.fixture
def url(chat: Chat) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            chat.asked.append(body)
            content = chat.answers.get(body["messages"][0]["content"], "")
            choice = {"index": 0, "message": {"content": content}}
            data = json.dumps({"choices": [choice]}).encode()
            self.send_response(500 if chat.fails else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with answering(Handler) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def asker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with harness(tmp_path_factory.mktemp("harness") / "log") as started:
        yield started


def request(folder: Path, url: str, name: str, items: list[dict[str, Any]]) -> Request:
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return Request(
        task=name,
        items=str(folder / "items.jsonl"),
        output=str(folder / "answers.json"),
        url=url,
        model="model",
        chat=True,
        seed=7,
        temperature=0.6,
        max_tokens=64,
        concurrency=4,
        request_timeout=10,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_right_answers_score_and_others_do_not(
    chat: Chat, url: str, asker: Harness, tmp_path: Path, name: str
) -> None:
    with gather(find_items(TaskSection(name=name))) as gathered:
        items = read_items(TaskSection(name=name, samples=3), gathered.files)
    chat.answers = {KINDS[name].prompt(items[0]): right(name, items[0])}
    asker.ask(request(tmp_path, url, name, items), 120)
    found = json.loads((tmp_path / "answers.json").read_text())
    assert [each["score"] for each in found] == [1.0, 0.0, 0.0]
    assert found[0]["answer"] == right(name, items[0])
    asked = chat.asked[0]
    assert (asked["seed"], asked["temperature"], asked["max_tokens"]) == (7, 0.6, 64)


@pytest.mark.slow
def test_sentences_and_words_are_counted_without_a_download(
    chat: Chat, url: str, asker: Harness, tmp_path: Path
) -> None:
    checks = [
        ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}),
        (
            "change_case:capital_word_frequency",
            {"capital_relation": "at least", "capital_frequency": 2},
        ),
    ]
    items = [
        {"key": n, "prompt": str(n), "instruction_id_list": [check], "kwargs": [given]}
        for n, (check, given) in enumerate(checks)
    ]
    chat.answers = {"0": "It rains. We stay at home.", "1": "LOOK, a BIRD"}
    asker.ask(request(tmp_path, url, "ifeval", items), 120)
    found = json.loads((tmp_path / "answers.json").read_text())
    assert [each["score"] for each in found] == [1.0, 1.0]


@pytest.mark.slow
def test_a_server_that_fails_is_said_by_the_task(
    chat: Chat, url: str, asker: Harness, tmp_path: Path
) -> None:
    chat.fails = True
    items = [{"question": "1 + 1?", "answer": "#### 2"}]
    with pytest.raises(StepError, match=r"gsm8k could not be asked: .*500"):
        asker.ask(request(tmp_path, url, "gsm8k", items), 120)


def test_what_takes_too_long_is_said_by_the_task(tmp_path: Path) -> None:
    with harness(tmp_path / "log") as asked, pytest.raises(StepError) as caught:
        asked.ask(request(tmp_path, "http://127.0.0.1:1", "gsm8k", []), 0.0)
    assert "gsm8k was not answered within 0 s" in str(caught.value)
    assert asked.process.poll() is not None


def test_keys_are_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with harness(tmp_path / "log") as asked:
        known, until = b"", time.monotonic() + 10
        while not known and time.monotonic() < until:  # the process is on its way
            known = Path(f"/proc/{asked.process.pid}/environ").read_bytes()
    assert b"secret" not in known
    assert b"HF_HUB_OFFLINE=1" in known


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise module.PackageNotFoundError

    monkeypatch.setattr(module, "version", missing)
    with pytest.raises(InvalidInputError, match="quantlib-llm\\[tasks\\]"):
        harness_version()
