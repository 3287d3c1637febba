"""Toy workflows whose steps are a few lines of Python, run as processes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components._images import Images
from pipelines.graph import Constants, Graph, Output
from pipelines.interface import Interface
from pipelines.local.calls import Call
from pipelines.local.processes import ProcessRunner
from pipelines.local.run import RunResult, run_graph
from pipelines.local.scheduler import Execution
from pipelines.profiles import Retries

PRELUDE = """
import json, os, pathlib, sys, time
call = json.loads(sys.argv[-1])
inputs = call["inputs"]["parameterValues"]
output = {"parameterValues": {}, "artifacts": {}}
def artifact(group, name, index=0):
    uri = call[group]["artifacts"][name]["artifacts"][index]["uri"]
    return pathlib.Path(uri.removeprefix("file://"))
def write(name, value):
    output["parameterValues"][name] = value
def metadata(name, **entries):
    output["artifacts"][name] = {"artifacts": [{"metadata": entries}]}
"""
FINALE = '\npathlib.Path(call["outputs"]["outputFile"]).write_text(json.dumps(output))\n'


@dataclass(frozen=True)
class Script(Call):
    """A call that runs Python source in the place of a step."""

    source: str = ""

    @property
    def argv(self) -> tuple[str, ...]:
        """The command; the executor input is its argument."""
        program = PRELUDE + textwrap.dedent(self.source) + FINALE
        return ("python", "-S", "-c", program, super().argv[-1])


@dataclass(frozen=True)
class Toy:
    """A workflow, with the source and the outputs of each of its steps.

    Attributes:
        returns: Types of the output parameters, by step.
        makes: Types of the output artifacts, by step.
    """

    graph: Graph
    sources: Mapping[str, str]
    returns: Mapping[str, Mapping[str, type]] = field(default_factory=dict)
    makes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def interface(self, step: str) -> Interface:
        """What a step takes and gives: what comes from an artifact is one."""
        artifacts, parameters = [], {}
        for name, source in self.graph.step(step).inputs.items():
            if isinstance(source, Output) and source.name in self.makes.get(source.step, {}):
                artifacts.append(name)
            else:
                parameters[name] = str
        returns, makes = self.returns.get(step, {}), self.makes.get(step, {})
        return Interface(parameters, tuple(artifacts), returns, makes)


class ToyRunner(ProcessRunner):
    """Runs the sources of a toy."""

    def __init__(self, toy: Toy, grace: float = 2.0) -> None:
        super().__init__(grace)
        self._toy = toy

    async def run(self, call: Call) -> int:
        """Runs a step's source."""
        return await super().run(Script(**vars(call), source=self._toy.sources[call.step]))


def run_toy(
    toy: Toy,
    folder: Path,
    console: Console,
    /,
    *,
    parallel: int = 4,
    width: int = 64,
    grace: float = 2.0,
    retries: int = 0,
    gpus: tuple[str, ...] = (),
    **settings: Any,
) -> RunResult:
    """Runs a toy, with no wait before an attempt."""
    execution = Execution(
        folder,
        ToyRunner(toy, grace),
        parallel,
        Retries(count=retries, delay=0, factor=1, limit=60),
        Images("toy", "toy", "toy", "toy"),
        gpus,
    )
    constants = Constants(recipes={}, node_gpus=1, parallel=width, scratch="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.local.scheduler.interface_of", toy.interface)
        return run_graph(toy.graph, settings, constants, execution, console)
