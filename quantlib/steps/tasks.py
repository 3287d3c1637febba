"""Gives original and checkpoint tasks, as they are served, and judges what the checkpoint keeps.

A run whose recipe asks for none passes here at once. As ``validate`` does, the step succeeds
whatever it finds; the gate makes a refusal visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from quantlib.checkpoint.source import ReceiptSource
from quantlib.checks.recipe import recipe_from_text
from quantlib.recipe import Recipe
from quantlib.report.build import TASKS_NAME, read_json
from quantlib.runtime.surroundings import cpu_name
from quantlib.steps.candidates import Candidate, candidates_of
from quantlib.steps.contract import StepCall
from quantlib.steps.delivery import deliver
from quantlib.steps.texts import asked_items, input_of
from quantlib.store import Receipt, StepOutput, Store, commit_step
from quantlib.store.scratch import Scratch
from quantlib.task_section import TaskSection, TasksSection
from quantlib.tasks.answers import ANSWERS_NAME, answers_of, figures_of
from quantlib.tasks.harness import Request, harness, harness_version
from quantlib.tasks.items import purpose_of
from quantlib.tasks.judging import TaskAnswers, counted_tasks, judge, task_recovery
from quantlib.tasks.kinds import KINDS
from quantlib.tasks.loads import LOADS_NAME, measure
from quantlib.tasks.outcome import BeforeAndAfter, Loads, TaskOutcome, TasksOutcome
from quantlib.tasks.prepared import Prepared, prepare
from quantlib.tasks.served import served, server_version
from quantlib.tasks.shut_off import hide_environment, require_available
from quantlib.text.tokenizer import load_tokenizer

STEP = "tasks"
ANSWERS_STEP = "answers"
LOADS_STEP = "loads"
NOTHING_ASKED = "the recipe asks for no tasks"
_SERVER_LOG, _HARNESS_LOG = "server.log", "lm-eval.log"


_Ask = Callable[[TaskSection, int], Receipt]
_Measure = Callable[[], Receipt]


@dataclass(frozen=True)
class _Bench:
    """What both models are asked with."""

    store: Store
    section: TasksSection
    prepared: Prepared
    texts: Receipt
    vllm: str
    numerics: dict[str, Any]

    def parameters(self, task: TaskSection, candidate: Candidate, seed: int) -> dict[str, Any]:
        """What decides a model's answers to a task, besides the model and the items."""
        return {
            "task": task.name,
            "samples": task.samples,
            "max_tokens": task.tokens,
            "temperature": self.section.temperature,
            "seed": seed,
            "chat": self.prepared.chat,
            "harness": harness_version(),
            "engine_version": self.vllm,
            "arguments": candidate.arguments,
            "how": candidate.how,
        }


def tasks(
    store: Store,
    recipe: Recipe,
    model: Receipt,
    texts: Receipt,
    checkpoint: Receipt,
    device: str = "auto",
    gpus: int = 1,
) -> Receipt:
    """Judges a checkpoint by tasks.

    The answers of a model to a task with a seed are committed by themselves: those of the original
    are found again by every recipe of the same model, and a step that was killed goes on.

    The receipt's facts are the ``verdict``, the ``reason`` and the names of the ``tasks``.

    Args:
        store: Where the steps' files are.
        recipe: Which tasks, and what has to be kept.
        model: The fetch step's receipt.
        texts: Of the texts that were brought with it: the items are among them.
        checkpoint: The merge step's receipt.
        device: auto, cpu or cuda.
        gpus: What each of the two models is spread over.

    Raises:
        InvalidInputError: vLLM or lm-eval is not installed, or the model cannot be asked.
        StepError: A server or the harness failed, or an answer did not come in time.
    """
    section = recipe.tasks
    if not section.run:
        return commit_step(store, STEP, {}, {}, _nothing_asked)
    bench = _bench(store, recipe, model, texts, checkpoint, device)
    answered: dict[str, Receipt] = {}
    loaded: dict[str, Receipt] = {}
    candidates = candidates_of(
        store, recipe, model, checkpoint, bench.prepared.context, device, gpus
    )
    for candidate in candidates:
        again = section.floor_seeds if candidate.role == "original" else ()
        with _asking(bench, candidate) as (ask, measured):
            if section.loads.concurrency:
                loaded[f"{candidate.role} loads"] = measured()
            for task in section.run:
                for seed in (*section.seeds, *again):
                    name = f"{candidate.role} {task.name} {seed}"
                    answered[name] = ask(task, seed)

    def work(output: StepOutput) -> None:
        outcome = _judged(bench, candidates, answered)
        if loaded:
            serving = _before_and_after(bench, loaded)
            outcome = outcome.model_copy(update={"serving": serving})
        output.add_bytes(TASKS_NAME, outcome.model_dump_json(indent=1).encode())
        output.facts = {
            "verdict": outcome.verdict,
            "reason": outcome.reason,
            "tasks": [task.name for task in outcome.tasks],
            "limit": outcome.limit,
        }
        if outcome.recovery is not None:
            output.facts["recovery"] = outcome.recovery.value

    parameters = {"min_recovery": section.min_recovery, "tasks": [t.name for t in section.run]}
    inputs = {"model": model, "checkpoint": checkpoint, **answered, **loaded}
    return commit_step(store, STEP, parameters, inputs, work)


def read_outcome(store: Store, receipt: Receipt) -> TasksOutcome | None:
    """What came of the tasks; None where none were asked for.

    Raises:
        StoreError: A file is missing or is not what its receipt says.
    """
    if TASKS_NAME not in receipt.files:
        return None
    return TasksOutcome.model_validate(read_json(store, receipt, TASKS_NAME))


def main(call: StepCall) -> None:
    store, recipe = call.store(), recipe_from_text(call.text("recipe"))
    receipt = tasks(
        store,
        recipe,
        call.receipt("model"),
        call.receipt("texts"),
        call.receipt("checkpoint"),
        call.text("device"),
        call.gpus(),
    )
    deliver(call, "tasks", store, receipt)
    call.write_parameter("verdict", receipt.facts["verdict"])
    call.write_parameter("reason", receipt.facts["reason"])


def _nothing_asked(output: StepOutput) -> None:
    output.facts = {"verdict": "passed", "reason": NOTHING_ASKED, "tasks": []}


def _bench(
    store: Store,
    recipe: Recipe,
    model: Receipt,
    texts: Receipt,
    checkpoint: Receipt,
    device: str,
) -> _Bench:
    import torch

    from quantlib.runtime.devices import numerics, resolve_device

    section, vllm = recipe.tasks, server_version()
    harness_version()
    if any(KINDS[task.name].runs_code for task in section.run):
        require_available()
        hide_environment()
    prepared = prepare(section, asked_items(store, section, texts), ReceiptSource(store, model))
    dtype = getattr(torch, checkpoint.facts["serve"]["dtype"])
    return _Bench(
        store, section, prepared, texts, vllm, dict(numerics(resolve_device(device), dtype))
    )


@contextmanager
def _asking(bench: _Bench, candidate: Candidate) -> Iterator[tuple[_Ask, _Measure]]:
    """Asks a model, and measures how fast it is served.

    It is served from the first question on that was not asked before.
    """
    store, section = bench.store, bench.section
    with ExitStack() as stack:

        @cache
        def started() -> tuple[Path, Any, Any]:
            scratch = stack.enter_context(
                Scratch(store.scratch, f"{candidate.role[:3]}-{candidate.receipt.key}")
            )
            candidate.place(scratch / "model")
            server = stack.enter_context(
                served(scratch / "model", candidate.arguments, scratch / _SERVER_LOG)
            )
            return scratch, server, stack.enter_context(harness(scratch / _HARNESS_LOG))

        def ask(task: TaskSection, seed: int) -> Receipt:
            def work(output: StepOutput) -> None:
                scratch, server, asked = started()
                items, answers = output.scratch / "items.jsonl", output.scratch / "answers.json"
                bench.prepared.write(task.name, items)
                request = Request(
                    task=task.name,
                    items=str(items),
                    output=str(answers),
                    url=server.url,
                    model=server.name,
                    chat=bench.prepared.chat,
                    seed=seed,
                    temperature=section.temperature,
                    max_tokens=task.tokens,
                    concurrency=section.concurrency,
                    request_timeout=section.request_timeout,
                )
                try:
                    asked.ask(request, section.task_timeout)
                finally:
                    for name in (_SERVER_LOG, _HARNESS_LOG):
                        if (log := scratch / name).exists():
                            store.put_bytes(log.read_bytes(), f"{output.aside}/{name}")
                tokenizer = load_tokenizer(ReceiptSource(store, candidate.receipt))
                found = answers_of(answers, tokenizer)
                output.add_json(ANSWERS_NAME, found)
                output.facts = {"items": len(found)} | figures_of(found)

            inputs = {
                "model": candidate.receipt,
                "items": input_of(store, bench.texts, purpose_of(task)),
            }
            parameters = bench.parameters(task, candidate, seed)
            return commit_step(store, ANSWERS_STEP, parameters, inputs, work, bench.numerics)

        def measured() -> Receipt:
            def work(output: StepOutput) -> None:
                scratch, server, _ = started()
                found = measure(section.loads, server, scratch / "model", scratch)
                output.add_json(LOADS_NAME, found.model_dump(mode="json"))

            parameters = {
                "loads": section.loads.model_dump(mode="json", exclude={"timeout"}),
                "engine_version": bench.vllm,
                "arguments": candidate.arguments,
                "how": candidate.how,
            }
            inputs = {"model": candidate.receipt}
            return commit_step(store, LOADS_STEP, parameters, inputs, work, bench.numerics)

        yield ask, measured


def _before_and_after(bench: _Bench, loaded: dict[str, Receipt]) -> BeforeAndAfter:
    original, quantized = (
        Loads.model_validate(read_json(bench.store, loaded[f"{role} loads"], LOADS_NAME))
        for role in ("original", "quantized")
    )
    return BeforeAndAfter(
        original=original,
        quantized=quantized,
        hardware=str(bench.numerics.get("hardware") or cpu_name()),
        is_gpu=bench.numerics["device"] == "cuda",
    )


def _judged(
    bench: _Bench, candidates: tuple[Candidate, Candidate], answered: dict[str, Receipt]
) -> TasksOutcome:
    section = bench.section

    def read(role: str, seeds: tuple[int, ...]) -> dict[str, TaskAnswers]:
        return {
            task.name: TaskAnswers.of(
                [
                    read_json(bench.store, answered[f"{role} {task.name} {seed}"], ANSWERS_NAME)
                    for seed in seeds
                ]
            )
            for task in section.run
        }

    original, again = read("original", section.seeds), read("original", section.floor_seeds)
    quantized = read("quantized", section.seeds)
    counted = counted_tasks(original)
    thinks = float(np.mean([each.closed.mean() for each in original.values()])) > 0.5
    outcomes = []
    for task in section.run:
        name, kind = task.name, KINDS[task.name]
        text = input_of(bench.store, bench.texts, purpose_of(task))
        outcomes.append(
            TaskOutcome(
                name=name,
                title=kind.title,
                scored=kind.scored,
                source=text.parameters["name"],
                shipped=text.parameters["origin"]["kind"] == "shipped",
                content=text.parameters["content"],
                items=len(original[name].score),
                original=original[name].summary(thinks=thinks),
                again=again[name].summary(thinks=thinks),
                quantized=quantized[name].summary(thinks=thinks),
                recovery=task_recovery(original, quantized, name, len(section.run)),
                counted=name in counted,
            )
        )
    judgement = judge(section, original, again, quantized, outcomes)
    notes = [f"the {each.role} is {each.how}" for each in candidates if each.how]
    if any(outcome.shipped for outcome in outcomes):
        notes.append(
            "the samples that ship show that the gate works and are too few and too easy to say "
            "how good a model is"
        )
    return TasksOutcome(
        verdict=judgement.verdict,
        reason=judgement.reason,
        tasks=tuple(outcomes),
        recovery=judgement.recovery,
        itself=judgement.itself,
        floor=judgement.floor,
        min_recovery=section.min_recovery,
        limit=judgement.limit,
        temperature=section.temperature,
        seeds=section.seeds,
        floor_seeds=section.floor_seeds,
        chat=bench.prepared.chat,
        harness=f"lm-eval {harness_version()}",
        served=f"vLLM {bench.vllm} on {bench.numerics['device']}",
        notes=tuple(notes),
    )
