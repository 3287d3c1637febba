"""What a process leaves and how it ends, in toy pipelines.

The annotations of components are read by kfp, which does not resolve them from strings: no
``from __future__ import annotations`` here.
"""

from collections.abc import Callable
from typing import Any

import pytest
from kfp import dsl

from pipelines.local import RunResult

Run = Callable[..., RunResult]
Step = Callable[[str], dsl.ContainerSpec]
Alone = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pass", "did not write its output"),
        ("write('number', 'seven')", "'seven' is no NUMBER_INTEGER"),
        ("write('number', '1.5')", "1.5 is no NUMBER_INTEGER"),
        (
            "pathlib.Path(call['outputs']['outputFile']).write_text('{')",
            "wrote a damaged executor output",
        ),
    ],
)
def test_a_step_without_its_outputs_has_failed(
    run: Run, alone: Alone, step: Step, source: str, message: str
) -> None:
    @dsl.container_component
    def work(number: dsl.OutputPath(int)) -> dsl.ContainerSpec:
        return step(source)

    result = run(alone(work))
    assert result.exit_code == 1
    assert result.failure is not None
    assert message in result.failure.error


def test_a_step_that_is_killed(run: Run, alone: Alone, step: Step) -> None:
    @dsl.container_component
    def work() -> dsl.ContainerSpec:
        return step("os.kill(os.getpid(), 9)")

    result = run(alone(work))
    assert result.exit_code == 137
    assert result.failure is not None
    assert result.failure.error == "step work: exited with code 137 (SIGKILL)"


def test_a_command_that_is_not_there(run: Run, alone: Alone) -> None:
    @dsl.container_component
    def work() -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image="toy", command=["no-such-program"])

    result = run(alone(work))
    assert result.exit_code == 1
    assert result.failure is not None
    assert "no-such-program cannot be started" in result.failure.error
