"""The section of a recipe that says which tasks original and checkpoint are given."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import Field, field_validator

from quantlib.section import Section

TASKS = ("gsm8k", "ifeval", "humaneval", "mbpp", "knowledge", "tools", "retrieval")
"""The tasks there are; :mod:`quantlib.tasks.kinds` says what each is."""

_DEFAULT_TOKENS = {
    "gsm8k": 512,
    "ifeval": 1280,
    "humaneval": 1024,
    "mbpp": 1024,
    "knowledge": 1024,
    "tools": 512,
    "retrieval": 128,
}


class TaskSection(Section):
    """One task, and the items that are asked of it."""

    name: Annotated[str, Field(description=f"One of {', '.join(TASKS)}.")]
    dataset: Annotated[
        str | None,
        Field(
            description="Its items, named as calibration.dataset is, in the columns that "
            "docs/tasks.md lists. Default: the small sample that ships with quantlib."
        ),
    ] = None
    split: Annotated[str, Field(description="Split of a data set on the hub.")] = "test"
    samples: Annotated[
        int | None, Field(ge=1, description="Its first items, so many. Default: all of them.")
    ] = None
    max_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description="Tokens of an answer, thinking included. Default: what suits the task of "
            "a model that does not think.",
        ),
    ] = None

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in TASKS:
            near = get_close_matches(value, TASKS, n=1)
            suggestion = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{value!r} is no task{suggestion} (known: {', '.join(TASKS)})")
        return value

    @property
    def tokens(self) -> int:
        """The most tokens that an answer may have."""
        return self.max_tokens or _DEFAULT_TOKENS[self.name]


class LoadsSection(Section):
    """Loads under which both models are served, to measure how fast they are."""

    concurrency: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4096)], ...],
        Field(description="Requests at a time, of each load. Empty: nothing is measured."),
    ] = ()
    requests: Annotated[
        int, Field(ge=1, description="Requests of a load, for each that is under way at a time.")
    ] = 4
    input_tokens: Annotated[int, Field(ge=1, description="Of each request.")] = 512
    output_tokens: Annotated[int, Field(ge=2, description="Of each answer.")] = 128
    timeout: Annotated[int, Field(ge=1, description="Seconds that a load may take.")] = 1800


class TasksSection(Section):
    """Tasks that original and checkpoint are given as they are served; none by default."""

    run: Annotated[
        tuple[TaskSection, ...],
        Field(description="The tasks: names, or mappings with a name. Empty: none is run."),
    ] = ()
    min_recovery: Annotated[
        float,
        Field(
            gt=0,
            le=1.5,
            description="What the checkpoint's score has to be of the original's, less what the "
            "original's varies by itself.",
        ),
    ] = 0.99
    temperature: Annotated[
        float,
        Field(
            ge=0,
            le=2,
            description="Of sampling. 0 takes the most likely token, and the original then varies "
            "by rounding alone.",
        ),
    ] = 0.6
    seed: Annotated[int, Field(ge=0, description="Of the first repetition.")] = 0
    repeats: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="How often each item is asked, each time with another seed. The original "
            "is asked once more, for what it varies by itself.",
        ),
    ] = 1
    concurrency: Annotated[
        int, Field(ge=1, le=1024, description="Requests that a server is given at a time.")
    ] = 16
    request_timeout: Annotated[int, Field(ge=1, description="Seconds that an answer may take.")] = (
        600
    )
    task_timeout: Annotated[
        int, Field(ge=1, description="Seconds that all answers of a task may take.")
    ] = 4 * 3600
    loads: Annotated[
        LoadsSection, Field(description="What is measured on the same servers, beside the tasks.")
    ] = LoadsSection()

    @field_validator("run", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [{"name": each} if isinstance(each, str) else each for each in value]
        return value

    @field_validator("run")
    @classmethod
    def _once(cls, value: tuple[TaskSection, ...]) -> tuple[TaskSection, ...]:
        names = [task.name for task in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"names {', '.join(twice)} more than once")
        return value

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the repetitions of both models."""
        return tuple(range(self.seed, self.seed + self.repeats))

    @property
    def floor_seeds(self) -> tuple[int, ...]:
        """Those by which the original is asked again."""
        return tuple(range(self.seed + self.repeats, self.seed + 2 * self.repeats))
