"""GPUs are found, and each is lent to one step at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import Toy

from pipelines.graph import Asked, Graph, Item, Output, Step
from pipelines.local.calls import Values
from pipelines.local.gpus import Gpus, find_gpus, wanted
from pipelines.local.run import RunResult
from quantlib.errors import StepError


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("0,1", ("0", "1")), ("GPU-8a, 2", ("GPU-8a", "2")), ("", ()), ("-1", ())],
)
def test_the_variable_limits_them(visible: str, expected: tuple[str, ...]) -> None:
    assert find_gpus({"CUDA_VISIBLE_DEVICES": visible}) == expected


def test_the_driver_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "nvidia-smi"
    stand_in.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_gpus({}) == ("0", "1", "2")
    stand_in.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert find_gpus({}) == ()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert find_gpus({}) == ()


@pytest.mark.parametrize(
    ("parameters", "count"),
    [
        ({"device": "auto"}, 1),
        ({"device": "cuda", "gpus": "4"}, 4),
        ({"device": "auto", "gpus": "0"}, 1),
        ({"device": "cpu", "gpus": "4"}, 0),
        ({}, 0),
    ],
)
def test_how_many_a_step_wants(parameters: dict[str, str], count: int) -> None:
    assert wanted(Values(parameters)) == count


def test_who_wants_several_is_not_passed_by() -> None:
    """Steps that want one cannot keep the other from ever being served."""

    async def lend() -> list[str]:
        gpus, order = Gpus(("0", "1")), list[str]()

        async def step(name: str, count: int) -> None:
            async with gpus.lend(name, count) as lent:
                assert len(lent) == count
                order.append(name)
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for name, count in (("a", 1), ("both", 2), ("b", 1), ("c", 1)):
                group.create_task(step(name, count))
        return order

    assert asyncio.run(lend())[:2] == ["a", "both"]


def test_more_than_there_are() -> None:
    async def lend() -> None:
        async with Gpus(("0", "1")).lend("validate", 4):
            pass

    with pytest.raises(StepError, match=r"validate.*asks for 4 GPUs, and this machine has 2"):
        asyncio.run(lend())


WORK = """
    lent = os.environ["CUDA_VISIBLE_DEVICES"]
    folder = pathlib.Path(inputs["folder"])
    for gpu in lent.split(","):
        (folder / gpu).touch(exist_ok=False)
    time.sleep(0.1)
    for gpu in lent.split(","):
        (folder / gpu).unlink()
    write("lent", lent)
"""


def test_steps_that_run_at_once_have_gpus_of_their_own(
    run: Callable[..., RunResult], tmp_path: Path
) -> None:
    inputs = {"folder": Asked("folder"), "device": Asked("device")}
    steps = (
        Step("split", {}),
        Step("work", inputs | {"part": Item()}, each=Output("split", "parts")),
        Step("judge", inputs | {"gpus": Output("split", "gpus")}, after=("work",)),
    )
    toy = Toy(
        Graph("toy", "", (), steps),
        {
            "split": 'write("parts", list("abcde")); write("gpus", "2")',
            "work": WORK,
            "judge": WORK,
        },
        {"split": {"parts": list, "gpus": str}, "work": {"lent": str}, "judge": {"lent": str}},
    )
    folder = tmp_path / "gpus"
    folder.mkdir()
    result = run(toy, gpus=("4", "7"), parallel=4, folder=str(folder), device="auto")
    assert result.exit_code == 0
    lent = {
        each.step: each.outputs.parameters["lent"] for each in result.runs if each.step != "split"
    }
    assert lent["judge"] == "4,7"
    assert {each.outputs.parameters["lent"] for each in result.runs if each.step == "work"} == {
        "4",
        "7",
    }
