"""What came of the tasks, as it stands in the step's file, in the report and on the card."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from quantlib.verdicts import Outcome


class Part(BaseModel):
    """A closed, immutable part of what came of tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Interval(Part):
    """A ratio with its confidence bounds."""

    value: float
    low: float
    high: float


class Answers(Part):
    """What a model's answers to a task were like.

    Attributes:
        score: Mean over items and repetitions, from 0 to 1.
        tokens: Mean length of an answer.
        empty: Share of answers without a word.
        valid: Share that can be read as an answer: a letter that is offered, a call that its
            schema allows.
        closed: Share that closes its thinking; None of a model that does not think.
    """

    score: float
    tokens: float
    empty: float
    valid: float
    closed: float | None = None


class TaskOutcome(Part):
    """One task.

    Attributes:
        name: As the recipe calls it.
        title: What it is about.
        scored: How an answer is scored.
        source: Where its items are from.
        shipped: Whether that is the sample that ships.
        content: Digest of the items' files.
        items: How many were asked.
        recovery: None where the original has no point.
        counted: Whether it counts; not where the original has no point.
    """

    name: str
    title: str
    scored: str
    source: str
    shipped: bool
    content: str
    items: int
    original: Answers
    again: Answers
    quantized: Answers
    recovery: Interval | None
    counted: bool

    @property
    def length_ratio(self) -> float | None:
        """Length of the checkpoint's answers by the original's."""
        return self.quantized.tokens / self.original.tokens if self.original.tokens else None


class Load(Part):
    """One measurement.

    Attributes:
        concurrency: Requests under way at a time.
        requests: How many there were, all of which were answered.
        tokens_per_second: Of output, all requests together.
        first_token_ms: Mean milliseconds from a request to its first token; with p99.
        between_tokens_ms: Mean milliseconds between two tokens of a request; with p99.
    """

    concurrency: int
    requests: int
    requests_per_second: float
    tokens_per_second: float
    first_token_ms: float
    first_token_p99_ms: float
    between_tokens_ms: float
    between_tokens_p99_ms: float


class Loads(Part):
    """One model under all loads.

    Attributes:
        weights_bytes: Of the files of weights that the server reads.
        cache_tokens: Tokens that fit the server's memory for keys and values; None where it does
            not say.
        command: The benchmark's, for the first load.
    """

    loads: tuple[Load, ...]
    weights_bytes: int
    cache_tokens: int | None
    command: str


class BeforeAndAfter(Part):
    """How fast both models are served on the same machine.

    Attributes:
        hardware: What serves them.
        is_gpu: Whether that is a GPU.
    """

    original: Loads
    quantized: Loads
    hardware: str
    is_gpu: bool

    @property
    def pairs(self) -> list[tuple[Load, Load]]:
        """Both models under each load."""
        return list(zip(self.original.loads, self.quantized.loads, strict=True))


class TasksOutcome(Part):
    """All tasks, and the verdict.

    Attributes:
        recovery: Over all tasks that count, each alike.
        floor: What the original's recovery against itself can differ from 1 by.
        limit: What the recovery was held against: ``min_recovery`` less the floor.
        chat: Whether the models were asked through their chat template.
        served: How they were served: engine, version, device, dtype.
        notes: What qualifies the figures.
        serving: Speed of serving, where it was asked for.
    """

    verdict: Outcome
    reason: str
    tasks: tuple[TaskOutcome, ...]
    recovery: Interval | None
    itself: Annotated[
        Interval | None, Field(description="The original against itself, with other seeds.")
    ]
    floor: float
    min_recovery: float
    limit: float
    temperature: float
    seeds: tuple[int, ...]
    floor_seeds: tuple[int, ...]
    chat: bool
    harness: str
    served: str
    notes: tuple[str, ...] = ()
    serving: BeforeAndAfter | None = None

    @property
    def thinks(self) -> bool:
        """Whether the model thinks before it answers."""
        return any(task.original.closed is not None for task in self.tasks)
