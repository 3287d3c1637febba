"""Order, loops, conditions, bounds and retries."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import Toy

from pipelines.graph import Asked, Condition, Graph, Item, Output, Step
from pipelines.local.run import RunResult

Run = Callable[..., RunResult]

FAN_OUT = Toy(
    Graph(
        "toy",
        "Split, work for each part, join.",
        (),
        (
            Step("split", {"count": Asked("count")}),
            Step(
                "work",
                {"part": Item(), "prefix": Output("split", "prefix")},
                each=Output("split", "parts"),
            ),
            Step("join", {"pieces": Output("work", "piece")}),
        ),
    ),
    {
        "split": """
            write("parts", [f"{i}:{i + 1}" for i in range(inputs["count"])])
            write("prefix", "<")
        """,
        "work": """
            artifact("outputs", "piece").write_text(inputs["prefix"] + inputs["part"])
            write("threads", os.environ["OMP_NUM_THREADS"])
        """,
        "join": """
            count = len(call["inputs"]["artifacts"]["pieces"]["artifacts"])
            write("whole", [artifact("inputs", "pieces", i).read_text() for i in range(count)])
            write("threads", os.environ["OMP_NUM_THREADS"])
        """,
    },
    {
        "split": {"parts": list, "prefix": str},
        "work": {"threads": str},
        "join": {"whole": list, "threads": str},
    },
    {"work": {"piece": "system.Artifact"}},
)


def states(result: RunResult) -> dict[str, str]:
    return {run.name: run.state.value for run in result.runs}


def single(source: str, retried: bool = True, **inputs: Asked) -> Toy:
    """A workflow of one step."""
    return Toy(Graph("toy", "", (), (Step("work", inputs, retried=retried),)), {"work": source})


def test_a_loop_is_collected_in_order(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    result = run(FAN_OUT, parallel=3, count=4)
    assert [each.name for each in result.runs] == [
        "split",
        *(f"work[{i}:{i + 1}]" for i in range(4)),
        "join",
    ]
    joined = result.outputs["join"].parameters
    assert joined["whole"] == ["<0:1", "<1:2", "<2:3", "<3:4"]
    cpus = len(os.sched_getaffinity(0))
    assert joined["threads"] == str(cpus)
    assert result.outputs["work[0:1]"].parameters["threads"] == str(max(1, cpus // 3))


def test_threads_are_divided_by_what_can_run_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run(FAN_OUT, parallel=8, count=3).outputs["work[0:1]"].parameters["threads"] == "4"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert run(FAN_OUT, parallel=8, count=3).outputs["work[0:1]"].parameters["threads"] == "5"


@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        ("yes", {"find": "succeeded", "make": "succeeded", "tell": "succeeded"}),
        ("no", {"find": "succeeded", "make": "skipped", "tell": "skipped"}),
    ],
)
def test_a_condition_is_of_all_that_needs_what_it_holds_for(
    run: Run, needed: str, expected: dict[str, str]
) -> None:
    when = Condition(Output("find", "needed"), "yes", "is needed")
    steps = (
        Step("find", {"wanted": Asked("wanted")}),
        Step("make", {}, when=when),
        Step("tell", {}, after=("make",)),
    )
    toy = Toy(
        Graph("toy", "", (), steps),
        {"find": "write('needed', inputs['wanted'])", "make": "", "tell": ""},
        {"find": {"needed": str}},
    )
    result = run(toy, wanted=needed)
    assert (result.exit_code, states(result)) == (0, expected)


def test_a_failure_stops_new_steps_and_lets_running_ones_finish(run: Run, tmp_path: Path) -> None:
    steps = (
        Step("split", {}),
        Step("work", {"item": Item(), "folder": Asked("folder")}, each=Output("split", "items")),
        Step("join", {}, after=("work",)),
    )
    work = """
        leaving = pathlib.Path(inputs["folder"]) / "leaving"
        if inputs["item"] == "b":
            leaving.touch()
            sys.exit(2)
        while not leaving.exists():
            time.sleep(0.02)
        time.sleep(1)
    """
    toy = Toy(
        Graph("toy", "", (), steps),
        {"split": "write('items', ['a', 'b', 'c', 'd'])", "work": work, "join": ""},
        {"split": {"items": list}},
    )
    result = run(toy, parallel=2, folder=str(tmp_path))
    assert states(result) == {
        "split": "succeeded",
        "work[a]": "succeeded",
        "work[b]": "failed",
        "work[c]": "not run",
        "work[d]": "not run",
        "join": "not run",
    }
    assert result.exit_code == 2
    assert result.failure is not None
    assert result.failure.name == "work[b]"
    assert "work[b]: failed in" in run.output  # type: ignore[attr-defined]  # set by the fixture


def most_at_once(folder: Path) -> int:
    """How many steps ran at the same time, from the times that they left in files."""
    events = []
    for path in folder.iterdir():
        start, end = map(float, path.read_text().split())
        events += [(start, 1), (end, -1)]
    running = most = 0
    for _, change in sorted(events):
        running += change
        most = max(most, running)
    return most


@pytest.mark.parametrize(("parallel", "width", "expected"), [(2, 64, 2), (4, 1, 1), (6, 64, 6)])
def test_parallelism_is_bounded(
    run: Run, tmp_path: Path, parallel: int, width: int, expected: int
) -> None:
    inputs = {"item": Item(), "folder": Asked("folder"), "expected": Asked("expected")}
    loops = ("work", "other") if width > 1 else ("work",)  # steps of another loop share the bound
    steps = (
        Step("split", {}),
        *(Step(name, inputs, each=Output("split", name)) for name in loops),
    )
    source = """
        start = time.time()
        path = pathlib.Path(inputs["folder"]) / inputs["item"]
        path.touch()
        while len(list(path.parent.iterdir())) < inputs["expected"]:
            assert time.time() < start + 20
            time.sleep(0.02)
        time.sleep(0.2)
        path.write_text(f"{start} {time.time()}")
    """
    toy = Toy(
        Graph("toy", "", (), steps),
        {"split": "write('work', list('abc')); write('other', list('def'))"}
        | dict.fromkeys(loops, source),
        {"split": {"work": list, "other": list}},
    )
    times = tmp_path / "times"
    times.mkdir()
    result = run(toy, parallel=parallel, width=width, folder=str(times), expected=expected)
    assert result.exit_code == 0
    assert len(list(times.iterdir())) == 3 * len(loops)
    assert most_at_once(times) == expected


FLAKY = """
    path = pathlib.Path(inputs["counter"])
    attempt = len(path.read_text()) + 1 if path.exists() else 1
    path.write_text("x" * attempt)
    left = pathlib.Path(call["outputs"]["outputFile"]).parent / "artifacts" / "left"
    assert not left.exists()
    left.write_text("by an attempt")
    print("attempt", attempt)
    if attempt < 3:
        sys.exit(7)
"""


@pytest.mark.parametrize(
    ("retries", "retried", "code", "attempts"),
    [(2, True, 0, 3), (1, True, 7, 2), (0, True, 7, 1), (5, False, 7, 1)],
)
def test_a_step_that_failed_is_started_again(
    run: Run, tmp_path: Path, retries: int, retried: bool, code: int, attempts: int
) -> None:
    counter = tmp_path / "counter"
    toy = single(FLAKY, retried, counter=Asked("counter"))
    result = run(toy, retries=retries, counter=str(counter))
    (work,) = result.runs
    assert (result.exit_code, work.attempts) == (code, attempts)
    expected = "".join(f"attempt {n + 1}\n" for n in range(attempts))
    assert (work.folder / "log.txt").read_text() == expected


@pytest.mark.parametrize("code", [2, 3])
def test_what_would_fail_again_is_not_retried(run: Run, code: int) -> None:
    result = run(single(f"sys.exit({code})"), retries=3)
    assert (result.exit_code, result.runs[0].attempts) == (code, 1)


def test_a_step_that_is_killed(run: Run) -> None:
    result = run(single("os.kill(os.getpid(), 9)"))
    assert result.exit_code == 137
    assert result.failure is not None
    assert result.failure.error == "step work: exited with code 137 (SIGKILL)"
