"""The workflows, as data: which step takes what from where.

    fetch ─ plan ─ calibrate ─ smooth ─┬─ quantize 0:8  ─┐         ┌─ validate ─┐
                                       ├─ quantize 8:16 ─┼─ merge ─┤            ├─ gate ─ publish
                                       └─ quantize 16:24 ┘         └─ tasks ────┘

A recipe with a budget has its schemes searched on the way: behind calibrate, ``measure`` tries them
on the blocks of each range, and ``choose`` writes the recipe that the steps behind it take.

What runs or draws a workflow is a loop over its steps: :mod:`pipelines.kubeflow`,
:mod:`pipelines.argo` and :mod:`pipelines.local`. What a step takes and gives, with the types, is
said by its component (:mod:`pipelines.interface`). Only receipts of a few KB travel between the
steps; weights and activations stay in the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from quantlib.checks.recipe_choice import AS_IN_RECIPE
from quantlib.planning import HARDWARE
from quantlib.schemes import SCHEMES


@dataclass(frozen=True)
class Setting:
    """A parameter of a workflow: a field of the form that Kubeflow shows.

    Attributes:
        default: Its value where none is given; None where one has to be.
        choices: What it can be; empty for anything.
        is_open: Whether it can be something else than what a form offers as well.
    """

    name: str
    description: str
    kind: type = str
    default: Any = None
    choices: tuple[str, ...] = ()
    is_open: bool = False


@dataclass(frozen=True)
class Asked:
    """The value of a setting."""

    name: str


@dataclass(frozen=True)
class Constant:
    """What is known when the workflow is compiled: a field of :class:`Constants`."""

    name: str


@dataclass(frozen=True)
class Output:
    """An output of an earlier step: of one that runs once for each of something, all of them."""

    step: str
    name: str


@dataclass(frozen=True)
class Item:
    """What a step that runs once for each of something runs for."""


Source = Asked | Constant | Output | Item


@dataclass(frozen=True)
class Condition:
    """That a parameter of an earlier step has a value."""

    source: Output
    value: str
    name: str


@dataclass(frozen=True)
class Step:
    """One step, in a pod of its own.

    Attributes:
        inputs: Where each input of its component comes from.
        each: The list that it runs once for each of, side by side.
        after: Steps that it takes nothing of and that have to succeed before it.
        when: What has to hold for it to run; without that it is skipped.
        retried: Whether one that failed is started again: one that fails on purpose is not.
    """

    name: str
    inputs: Mapping[str, Source]
    each: Output | None = None
    after: tuple[str, ...] = ()
    when: Condition | None = None
    retried: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        """The steps that have to succeed before it."""
        sources = [*self.inputs.values(), self.each, self.when and self.when.source]
        named = [source.step for source in sources if isinstance(source, Output)]
        return tuple(dict.fromkeys((*named, *self.after)))


@dataclass(frozen=True)
class Graph:
    """A workflow.

    Attributes:
        settings: Its parameters.
        steps: In an order that they can run in.
    """

    name: str
    description: str
    settings: tuple[Setting, ...]
    steps: tuple[Step, ...]

    def step(self, name: str) -> Step:
        """The step of a name."""
        return next(step for step in self.steps if step.name == name)

    @property
    def searches(self) -> bool:
        """Whether schemes are searched on the way."""
        return any(step.name == "measure" for step in self.steps)

    def is_collected(self, source: Source) -> bool:
        """Whether a source is the list of what all runs of one step gave."""
        return isinstance(source, Output) and self.step(source.step).each is not None


@dataclass(frozen=True)
class Constants:
    """What is known when a workflow is compiled.

    Attributes:
        recipes: Recipes of one's own, as text, by the names that runs choose them by.
        node_gpus: GPUs of one node.
        parallel: Ranges that are quantized at the same time.
        scratch: Local disk of a step, such as 400Gi; empty where it is not limited.
        searches: yes where the workflow has the steps that search schemes, else no.
        images: What the steps that make a checkpoint run in.
        job: Digest of the watcher's job that asks; empty where none does.
    """

    recipes: Mapping[str, str]
    node_gpus: int
    parallel: int
    scratch: str
    searches: str = "no"
    images: tuple[str, ...] = ()
    job: str = ""

    def value(self, constant: Constant) -> Any:
        """What a constant is, as JSON has it."""
        value = getattr(self, constant.name)
        return list(value) if isinstance(value, tuple) else value


_FETCH = Step(
    "fetch",
    {
        "recipe": Asked("recipe"),
        "scheme": Asked("scheme"),
        "recipe_changes": Asked("recipe_changes"),
        "recipes": Constant("recipes"),
        "source": Asked("model"),
        "store": Asked("store"),
    },
)
_RECIPE, _MODEL = Output("plan", "settled_recipe"), Output("fetch", "model")
_WORK: dict[str, Source] = {"recipe": _RECIPE, "store": Asked("store"), "model": _MODEL}

QUANTIZE = Graph(
    "quantize",
    "Quantizes a model for vLLM, proves it against the original and publishes it.",
    (
        Setting(
            "model",
            "What to quantize: hf://org/name@revision, s3://bucket/prefix, a folder or a .gguf "
            "file that every step can reach. Empty: the recipe's model.",
            default="",
        ),
        Setting(
            "recipe",
            "What to do with it: a recipe by its name, or one as YAML or JSON text.",
            default="gptq",
            is_open=True,
        ),
        Setting(
            "scheme",
            "Bits of weights (W) and activations (A), in the place of the recipe's.",
            default=AS_IN_RECIPE,
            choices=(AS_IN_RECIPE, *SCHEMES),
        ),
        Setting(
            "recipe_changes",
            "Fields of a recipe, such as calibration: {num_samples: 512}, in the place "
            "of the chosen one's.",
            kind=dict,
            default={},
        ),
        Setting("store", "Where the steps keep their work: s3://bucket/prefix, or a folder."),
        Setting(
            "publish_to",
            "Where to publish: s3://bucket/prefix, oci://registry/repository, hf://org/name, or a "
            "folder. Empty: the recipe's.",
            default="",
        ),
        Setting(
            "num_ranges",
            "Ranges of blocks that are quantized in parallel. 0: the recipe's. -1: as many as end "
            "soonest, by the plan.",
            kind=int,
            default=0,
        ),
        Setting(
            "device",
            "What the steps compute on.",
            default="auto",
            choices=("auto", "cpu", "cuda"),
        ),
        Setting("gpu", "What the plan reckons with; cpu for none.", choices=tuple(HARDWARE)),
    ),
    (
        _FETCH,
        Step(
            "plan",
            {
                **_WORK,
                "recipe": Output("fetch", "checked_recipe"),
                "num_ranges": Asked("num_ranges"),
                "gpu": Asked("gpu"),
                "parallel": Constant("parallel"),
                "node_gpus": Constant("node_gpus"),
                "scratch": Constant("scratch"),
                "searches": Constant("searches"),
                "texts": Output("fetch", "texts"),
            },
            retried=False,
        ),
        Step(
            "calibrate",
            {**_WORK, "device": Asked("device"), "plan": Output("plan", "plan")},
        ),
        Step("smooth", {**_WORK, "calibration": Output("calibrate", "calibration")}),
        Step(
            "quantize",
            {
                **_WORK,
                "device": Asked("device"),
                "block_range": Item(),
                "calibration": Output("calibrate", "calibration"),
                "smoothing": Output("smooth", "smoothing"),
                "memory": Output("plan", "quantize_memory"),
                "cpus": Output("plan", "quantize_cpus"),
                "gpus": Output("plan", "quantize_gpus"),
            },
            each=Output("plan", "ranges"),
        ),
        Step("merge", {**_WORK, "quantized": Output("quantize", "quantized")}),
        Step(
            "validate",
            {
                **_WORK,
                "device": Asked("device"),
                "gpus": Output("plan", "validate_gpus"),
                "plan": Output("plan", "plan"),
                "checkpoint": Output("merge", "checkpoint"),
            },
        ),
        Step(
            "tasks",
            {
                **_WORK,
                "device": Asked("device"),
                "gpus": Output("plan", "tasks_gpus"),
                "texts": Output("fetch", "texts"),
                "checkpoint": Output("merge", "checkpoint"),
            },
        ),
        Step(
            "gate",
            {
                "verdict": Output("validate", "verdict"),
                "reason": Output("validate", "reason"),
                "tasks_verdict": Output("tasks", "verdict"),
                "tasks_reason": Output("tasks", "reason"),
                "model": Asked("model"),
            },
            retried=False,
        ),
        Step(
            "publish",
            {
                "recipe": _RECIPE,
                "store": Asked("store"),
                "destination": Asked("publish_to"),
                "job": Constant("job"),
                "checkpoint": Output("merge", "checkpoint"),
                "validation": Output("validate", "validation"),
                "tasks": Output("tasks", "tasks"),
            },
            after=("gate",),
        ),
    ),
)

_RESOLVE = Step(
    "resolve",
    {
        **{name: _FETCH.inputs[name] for name in ("recipe", "scheme", "recipe_changes", "recipes")},
        "source": Asked("model"),
        "num_ranges": Asked("num_ranges"),
        "destination": Asked("publish_to"),
        "images": Constant("images"),
    },
)
_OF_RELEASE: dict[Source, Source] = {
    Asked("model"): Output("resolve", "release"),
    Constant("job"): Output("resolve", "job"),
}


def _fed(step: Step, others: Mapping[Source, Source]) -> Step:
    """A step that takes others in the place of some sources."""
    inputs = {name: others.get(source, source) for name, source in step.inputs.items()}
    return replace(step, inputs=inputs)


def _watched(name: str, graph: Graph) -> Graph:
    """A workflow that runs another where there is something new to run it for."""
    return Graph(
        name,
        "Quantizes a model where the release that its address means now is not published yet.",
        graph.settings,
        (
            _RESOLVE,
            *(
                replace(
                    _fed(step, _OF_RELEASE),
                    when=Condition(Output("resolve", "needed"), "yes", "release is new"),
                )
                for step in graph.steps
            ),
        ),
    )


_MEASURE = Step(
    "measure",
    {
        **_WORK,
        "device": Asked("device"),
        "block_range": Item(),
        "calibration": Output("calibrate", "calibration"),
        "memory": Output("plan", "quantize_memory"),
        "cpus": Output("plan", "quantize_cpus"),
        "gpus": Output("plan", "quantize_gpus"),
    },
    each=Output("plan", "ranges"),
)
_CHOOSE = Step("choose", {**_WORK, "measured": Output("measure", "measured")})


def _searching() -> tuple[Step, ...]:
    """The steps of the quantization with those of a search, and what comes of it behind them."""
    at = [step.name for step in QUANTIZE.steps].index("smooth")
    searched: dict[Source, Source] = {_RECIPE: Output("choose", "searched_recipe")}
    behind = (_fed(step, searched) for step in QUANTIZE.steps[at:])
    return (*QUANTIZE.steps[:at], _MEASURE, _CHOOSE, *behind)


SEARCH = Graph(
    "search",
    "Quantizes a model to the budget of a recipe: measures what each scheme costs each linear, "
    "chooses the best, and goes on as quantize does.",
    QUANTIZE.settings,
    _searching(),
)
WATCH = _watched("watch", QUANTIZE)
WATCH_SEARCH = _watched("watch-search", SEARCH)

GRAPHS = {graph.name: graph for graph in (QUANTIZE, WATCH, SEARCH, WATCH_SEARCH)}
"""The workflows by their names."""
