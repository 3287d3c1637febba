"""The tasks step: what is asked of which model, once, and what it says then."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quantlib.errors import GateFailedError, InvalidInputError, StepError
from quantlib.report.build import build_report
from quantlib.report.html import render_html
from quantlib.report.model_card import render_model_card
from quantlib.report.summary import step_summary
from quantlib.steps import tasks as module
from quantlib.steps.publish import publish
from quantlib.steps.tasks import NOTHING_ASKED, read_outcome, tasks
from quantlib.steps.texts import bring_texts
from quantlib.store import LocalStore, Receipt
from quantlib.tasks.harness import Request
from quantlib.tasks.outcome import Load, Loads
from quantlib.tasks.served import Served

ASKED = {"run": [{"name": "gsm8k", "max_tokens": 8}, {"name": "tools", "max_tokens": 8}]}
CONTEXT = {"max_position_embeddings": 4096}


class Bench:
    """Stands in for vLLM and lm-eval.

    Attributes:
        score: What an item scores, by role, task, seed and number.
        served: Folders that were served.
        asked: What was asked, by role.
        fails_at: A task that is not answered.
    """

    def __init__(self) -> None:
        self.score: Callable[[str, str, int, int], float] = lambda *_: 1.0
        self.served: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str, int]] = []
        self.fails_at = ""
        self.role = ""

    @contextmanager
    def serve(self, folder: Path, arguments: dict[str, Any], log: Path) -> Iterator[Served]:
        config = json.loads((folder / "config.json").read_text())
        self.role = "quantized" if "quantization_config" in config else "original"
        self.served.append(arguments | {"role": self.role})
        yield Served("http://127.0.0.1:1", "model", (), log)

    @contextmanager
    def harness(self, log: Path) -> Iterator[Bench]:
        log.write_text("asked\n")
        yield self

    def ask(self, request: Request, _: float) -> None:
        if request.task == self.fails_at:
            raise StepError("tasks", f"{request.task} was not answered within 1 s")
        self.asked.append((self.role, request.task, request.seed))
        count = len(Path(request.items).read_text().splitlines())
        found = [
            {
                "answer": "x",
                "score": self.score(self.role, request.task, request.seed, n),
                "valid": 1,
            }
            for n in range(count)
        ]
        Path(request.output).write_text(json.dumps(found))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    monkeypatch.setattr(module, "served", made.serve)
    monkeypatch.setattr(module, "harness", made.harness)
    monkeypatch.setattr(module, "harness_version", lambda: "0.4.13")
    monkeypatch.setattr(module, "server_version", lambda: "0.32.0")
    return made


@pytest.fixture(scope="module")
def made(
    make_model: Any, small_recipe: Any, run_steps: Any, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    source = make_model(tmp_path_factory.mktemp("m") / "model", "llama", **CONTEXT)
    return run_steps(LocalStore(tmp_path_factory.mktemp("store")), small_recipe(), source)


def run(made: Any, small_recipe: Any, **section: Any) -> Receipt:
    recipe = small_recipe(tasks=ASKED | section)
    texts = bring_texts(made.store, recipe)
    return tasks(made.store, recipe, made.model, texts, made.checkpoint, "cpu")


def test_without_tasks_nothing_is_started(made: Any, small_recipe: Any, bench: Bench) -> None:
    found = run(made, small_recipe, run=[])
    assert found.facts == {"verdict": "passed", "reason": NOTHING_ASKED, "tasks": []}
    assert not bench.served
    assert read_outcome(made.store, found) is None


def test_each_model_is_asked_with_its_seeds_and_the_original_with_more(
    made: Any, small_recipe: Any, bench: Bench
) -> None:
    found = run(made, small_recipe, repeats=2, seed=10)
    assert [each["role"] for each in bench.served] == ["original", "quantized"]
    assert all(each["max_model_len"] <= 4096 for each in bench.served)
    of_original = {(task, seed) for role, task, seed in bench.asked if role == "original"}
    of_quantized = {(task, seed) for role, task, seed in bench.asked if role == "quantized"}
    names = ("gsm8k", "tools")
    assert of_original == {(name, seed) for name in names for seed in (10, 11, 12, 13)}
    assert of_quantized == {(name, seed) for name in names for seed in (10, 11)}
    assert len(bench.asked) == 12
    assert (found.facts["verdict"], found.facts["recovery"]) == ("passed", 1.0)


def test_what_was_answered_is_not_asked_again(made: Any, small_recipe: Any, bench: Bench) -> None:
    bench.fails_at = "tools"
    with pytest.raises(StepError, match="tools was not answered"):
        run(made, small_recipe, seed=20)
    bench.fails_at = ""
    asked = len(bench.asked)
    assert {task for _, task, _ in bench.asked} == {"gsm8k"}
    run(made, small_recipe, seed=20)
    assert not {("original", "gsm8k", 20), ("original", "gsm8k", 21)} & set(bench.asked[asked:])
    before = len(bench.asked)
    again = run(made, small_recipe, seed=20, min_recovery=0.5)
    assert len(bench.asked) == before, "another limit asks nothing"
    assert again.facts["limit"] == 0.5


def test_a_checkpoint_that_lost_is_refused_and_not_published(
    made: Any, small_recipe: Any, bench: Bench, tmp_path: Path
) -> None:
    bench.score = lambda role, task, seed, n: float(role == "original" or n % 2 == 0)
    found = run(made, small_recipe, seed=30)
    assert found.facts["verdict"] == "regression"
    assert "50.0% of the original's score is kept" in found.facts["reason"]
    validation = Receipt.from_json(
        found.to_json().replace(b'"step": "tasks"', b'"step": "validate"'), origin="test"
    )
    with pytest.raises(GateFailedError, match=r"did not pass the gate: 50\.0%"):
        publish(
            made.store,
            made.recipe,
            str(tmp_path / "published"),
            made.checkpoint,
            _passed(validation),
            found,
        )
    assert not (tmp_path / "published").exists()


def _passed(receipt: Receipt) -> Receipt:
    data = json.loads(receipt.to_json())
    data["facts"]["verdict"] = "passed"
    return Receipt.from_json(json.dumps(data).encode(), origin="test")


def test_pages_show_it(made: Any, small_recipe: Any, bench: Bench) -> None:
    bench.score = lambda role, task, seed, n: float(task == "gsm8k" and (n + seed) % 4 != 0)
    found = run(made, small_recipe, seed=40)
    outcome = read_outcome(made.store, found)
    assert outcome is not None
    assert [(task.name, task.counted) for task in outcome.tasks] == [
        ("gsm8k", True),
        ("tools", False),
    ]
    report = build_report(made.store, made.recipe, made.checkpoint, None, tasks=found)
    page, card = render_html(report), render_model_card(report)
    for text in (page, card, step_summary(made.store, found)):
        assert "75.0%" in text
        assert "gsm8k" in text
    assert "not counted" in page
    assert "| gsm8k: the last number, by lm-eval" in card
    assert {"tasks", "answers"} <= {step.step for step in report.provenance.receipts}


def load(concurrency: int, tokens_per_second: float) -> Load:
    figures = dict.fromkeys(Load.model_fields, 10.0 * concurrency)
    return Load.model_validate(
        figures
        | {
            "concurrency": concurrency,
            "requests": 8,
            "tokens_per_second": tokens_per_second,
        }
    )


def test_speed_is_measured_once_and_shown(
    made: Any, small_recipe: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(section: Any, *_: Any) -> Loads:
        measured.append(bench.role)
        speed = 111.0 if bench.role == "original" else 333.0
        loads = tuple(load(each, speed) for each in section.concurrency)
        return Loads(loads=loads, weights_bytes=1000, cache_tokens=46592, command="vllm bench")

    monkeypatch.setattr(module, "measure", measure)
    loads = {"concurrency": [1, 4], "input_tokens": 64, "output_tokens": 8}
    run(made, small_recipe, seed=50, loads=loads)
    found = run(made, small_recipe, seed=50, loads=loads, min_recovery=0.9)
    assert measured == ["original", "quantized"]
    outcome = read_outcome(made.store, found)
    assert outcome is not None
    assert outcome.serving is not None
    assert [(a.concurrency, b.tokens_per_second) for a, b in outcome.serving.pairs] == [
        (1, 333.0),
        (4, 333.0),
    ]
    report = build_report(made.store, made.recipe, made.checkpoint, None, tasks=found)
    for text in (render_html(report), render_model_card(report)):
        assert "111" in text
        assert "333" in text
        assert "no GPU" in text
        assert "vllm bench" in text


def test_loads_that_are_too_long_for_the_model(made: Any, small_recipe: Any, bench: Bench) -> None:
    loads = {"concurrency": [1], "input_tokens": 9000, "output_tokens": 64}
    with pytest.raises(InvalidInputError, match=r"tasks\.loads: take 9128 tokens"):
        run(made, small_recipe, loads=loads)
    assert not bench.served


def test_items_that_are_too_long_for_the_model(made: Any, small_recipe: Any, bench: Bench) -> None:
    with pytest.raises(InvalidInputError) as caught:
        run(made, small_recipe, run=[{"name": "gsm8k", "max_tokens": 5000}])
    assert "with answers of 5000, and the model reads 4096" in str(caught.value)
    assert not bench.served


def test_items_are_looked_at_before_they_are_brought(
    store: LocalStore, small_recipe: Any, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "?"}\n')
    missing = {"name": "tools", "dataset": str(tmp_path / "none.jsonl")}
    wrong = {"name": "gsm8k", "dataset": str(tmp_path / "rows.jsonl")}
    with pytest.raises(InvalidInputError, match="no such file or folder"):
        bring_texts(store, small_recipe(tasks={"run": [missing, wrong]}))
    with pytest.raises(InvalidInputError, match="row 1 has no answer"):
        bring_texts(store, small_recipe(tasks={"run": [wrong]}))
    assert not list(store.list())
