"""How long tasks take: two models that are served, and asked again and again."""

from __future__ import annotations

from quantlib.planning.hardware import Hardware
from quantlib.planning.model import ModelSizes
from quantlib.task_section import TaskSection, TasksSection
from quantlib.tasks.items import SHIPPED

_PUBLIC_ITEMS = {
    "gsm8k": 1319,
    "ifeval": 541,
    "humaneval": 164,
    "mbpp": 378,
    "knowledge": 12032,
    "tools": 1000,
    "retrieval": 500,
}
"""Items of the public data sets that docs/tasks.md names; how many another one holds is known when
it is fetched."""

_ANSWERED = 0.5
"""Share of the tokens that answers may have which they take, about."""

_HARNESS_SECONDS = 5.0
"""What lm-eval takes for a task beside the answers."""


def tasks_seconds(
    section: TasksSection, sizes: ModelSizes, hardware: Hardware, start: float, gpus: int
) -> float:
    """Seconds of the tasks step without what its pod takes; 0 where no tasks are asked for.

    A step of decoding reads all weights and computes one token of each request that is under way.

    Args:
        section: Of the recipe.
        sizes: Of the model.
        hardware: What serves it.
        start: Seconds that vLLM takes to start.
        gpus: That share the model.
    """
    if not section.run:
        return 0.0
    devices = max(1, gpus)
    flops = 2 * sizes.block_elements * section.concurrency / (hardware.products * devices)

    def asked(weights: int, seeds: int) -> float:
        step = max(weights / (hardware.bandwidth * devices), flops)
        tokens = sum(map(_tokens, section.run))
        decoding = seeds * tokens * _ANSWERED / section.concurrency * step
        return start + decoding + seeds * len(section.run) * _HARNESS_SECONDS

    # The original is asked with other seeds as well.
    return asked(sizes.total_bytes, 2 * section.repeats) + asked(
        sizes.quantized_bytes, section.repeats
    )


def items_of(task: TaskSection) -> int:
    """How many items a task has, as far as that is known before they are fetched."""
    if task.dataset is None:
        there = len((SHIPPED / f"{task.name}.jsonl").read_text("utf-8").splitlines())
    else:
        there = _PUBLIC_ITEMS[task.name]
    return there if task.samples is None else min(there, task.samples)


def _tokens(task: TaskSection) -> int:
    return items_of(task) * task.tokens
