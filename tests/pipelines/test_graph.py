"""The table of steps."""

from __future__ import annotations

import pytest

from pipelines.graph import (
    GRAPHS,
    QUANTIZE,
    SEARCH,
    WATCH,
    WATCH_SEARCH,
    Asked,
    Constant,
    Constants,
    Graph,
    Output,
)
from pipelines.interface import interface_of
from quantlib.steps import ALL_STEP_NAMES, STEP_NAMES


def test_the_steps_are_those_that_there_are() -> None:
    assert tuple(step.name for step in QUANTIZE.steps) == STEP_NAMES
    assert tuple(step.name for step in WATCH.steps) == ("resolve", *STEP_NAMES)
    assert tuple(step.name for step in WATCH_SEARCH.steps) == ALL_STEP_NAMES
    assert [graph.searches for graph in (QUANTIZE, WATCH, SEARCH, WATCH_SEARCH)] == [
        False,
        False,
        True,
        True,
    ]


def test_what_a_search_chose_is_what_steps_behind_it_take() -> None:
    names = [step.name for step in SEARCH.steps]
    at = names.index("choose")
    assert names[at - 2 : at + 2] == ["calibrate", "measure", "choose", "smooth"]
    for step in SEARCH.steps:
        if "recipe" in step.inputs and step.name not in ("fetch", "plan"):
            searched = names.index(step.name) > at
            expected = Output("choose", "searched_recipe") if searched else None
            assert step.inputs["recipe"] == (expected or Output("plan", "settled_recipe"))
    assert SEARCH.step("measure").each == QUANTIZE.step("quantize").each


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())
def test_every_step_is_given_what_its_component_takes(graph: Graph) -> None:
    for step in graph.steps:
        interface = interface_of(step.name)
        assert set(step.inputs) == {*interface.parameters, *interface.artifacts}, step.name


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())
def test_sources_are_there_and_of_the_kind_that_is_taken(graph: Graph) -> None:
    settings = {setting.name: setting for setting in graph.settings}
    before: set[str] = set()
    for step in graph.steps:
        interface = interface_of(step.name)
        for name, source in step.inputs.items():
            match source:
                case Asked(setting):
                    assert settings[setting].kind is interface.parameters[name]
                case Constant(field):
                    assert field in Constants.__dataclass_fields__
                case Output(producer, output):
                    given = interface_of(producer)
                    made = output in given.makes
                    assert made == (name in interface.artifacts), f"{step.name}.{name}"
                    if not made:
                        assert given.returns[output] is interface.parameters[name]
        assert set(step.needs) <= before, f"{step.name} comes too early"
        before.add(step.name)


def test_data_flows_as_designed() -> None:
    flow = {
        f"{step.name}.{name}": f"{source.step}.{source.name}"
        for step in QUANTIZE.steps
        for name, source in step.inputs.items()
        if isinstance(source, Output) and source.step != "fetch"
    }
    settled = [name for name in flow if flow[name] == "plan.settled_recipe"]
    assert settled == [
        f"{step}.recipe"
        for step in ("calibrate", "smooth", "quantize", "merge", "validate", "tasks", "publish")
    ]
    assert QUANTIZE.step("plan").inputs["recipe"] == Output("fetch", "checked_recipe")
    for name in settled:
        del flow[name]
    assert flow == {
        "calibrate.plan": "plan.plan",
        "smooth.calibration": "calibrate.calibration",
        "quantize.calibration": "calibrate.calibration",
        "quantize.smoothing": "smooth.smoothing",
        "quantize.memory": "plan.quantize_memory",
        "quantize.cpus": "plan.quantize_cpus",
        "quantize.gpus": "plan.quantize_gpus",
        "merge.quantized": "quantize.quantized",
        "validate.plan": "plan.plan",
        "validate.checkpoint": "merge.checkpoint",
        "validate.gpus": "plan.validate_gpus",
        "tasks.checkpoint": "merge.checkpoint",
        "tasks.gpus": "plan.tasks_gpus",
        "gate.verdict": "validate.verdict",
        "gate.reason": "validate.reason",
        "gate.tasks_verdict": "tasks.verdict",
        "gate.tasks_reason": "tasks.reason",
        "publish.checkpoint": "merge.checkpoint",
        "publish.validation": "validate.validation",
        "publish.tasks": "tasks.tasks",
    }
    assert QUANTIZE.step("quantize").each == Output("plan", "ranges")
    assert [step.name for step in QUANTIZE.steps if step.each] == ["quantize"]
    assert QUANTIZE.is_collected(Output("quantize", "quantized"))
    assert "gate" in QUANTIZE.step("publish").needs


def test_what_ends_by_its_nature_is_not_started_again() -> None:
    assert {step.name for step in QUANTIZE.steps if not step.retried} == {"plan", "gate"}


def test_a_release_takes_the_place_of_the_address() -> None:
    resolve, *others = WATCH.steps
    assert resolve.inputs["source"] == Asked("model")
    assert {step.when and step.when.source for step in others} == {Output("resolve", "needed")}
    assert WATCH.step("fetch").inputs["source"] == Output("resolve", "release")
    assert WATCH.step("publish").inputs["job"] == Output("resolve", "job")
    for step in others:
        assert "resolve" in step.needs
        assert not {Asked("model"), Constant("job")} & set(step.inputs.values())
