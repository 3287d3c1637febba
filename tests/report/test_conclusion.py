"""Which checkpoint to take: the smallest that passed, ties said as such, and why none."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from quantlib.report.build import build_report
from quantlib.report.conclusion import Conclusion, conclude, difference
from quantlib.report.model import Report
from quantlib.report.run_reports import Run

MIB = 1024**2
Make = Callable[..., Run]


@pytest.fixture
def make(run) -> Make:
    """A run with a size in MiB, a divergence and its standard error; B for the second."""
    content = build_report(run.store, run.recipe, run.checkpoint, run.evaluation).to_json()

    def made(
        letter: str,
        mebibytes: float,
        kl: float,
        error: float = 0.001,
        verdict: str = "passed",
        windows: Sequence[float] = (),
    ) -> Run:
        data: dict[str, Any] = json.loads(content)
        data["sizes"]["bytes_quantized"] = round(mebibytes * MIB)
        data["verdict"] = {"outcome": verdict, "reason": ""}
        data["evaluation"] |= {"kl_mean": kl, "kl_standard_error": error}
        if windows:
            data["evaluation"]["spread"] = {"windows": windows, "tokens": {}, "worst": []}
        if verdict == "not_validated":
            data["evaluation"] = None
        return Run(letter, f"run-{letter}", Report.from_json(json.dumps(data)))

    return made


def concluded(*runs: Run, fair: bool = True) -> Conclusion:
    return conclude(runs, fair=fair)


def test_the_smallest_that_passed_is_taken_and_the_others_are_told_from_it(make: Make) -> None:
    found = concluded(
        make("A", 100, 0.02),
        make("B", 60, 0.05),
        make("C", 40, 0.3, verdict="regression"),
        make("D", 80, 0.049),
        make("E", 120, 0.08),
        make("F", 30, 0, verdict="not_validated"),
    )
    assert found.take == ("B",)
    assert found.sentences == (
        "Take B (run-B): it is the smallest of the 4 that passed the gate, with 60.0 MiB and KL "
        "divergence 0.0500 ± 0.0010.",
        "A (run-A) passed too, is 66.7% larger and closer to the original by 0.0300 ± 0.0014 (KL "
        "divergence 0.0200 ± 0.0010).",
        "D (run-D) passed too, is 33.3% larger and no closer to the original: the two are a tie, "
        "within two standard errors (KL divergence 0.0490 ± 0.0010).",
        "E (run-E) passed too, is 100.0% larger and further from the original by 0.0300 ± 0.0014 "
        "(KL divergence 0.0800 ± 0.0010).",
        "C (run-C) was refused: regression.",
        "F (run-F) was not judged.",
    )


@pytest.mark.parametrize(("kl", "tied"), [(0.0528, True), (0.0529, False)])
def test_of_one_size_a_tie_is_within_two_standard_errors_of_the_difference(
    make: Make, kl: float, tied: bool
) -> None:
    """Twice the root of 0.001² + 0.001² is 0.00283."""
    found = concluded(make("A", 60, kl), make("B", 60.5, 0.05))
    if tied:
        assert found.take == ("A", "B")
        assert found.sentences == (
            "Take any of A and B: of the 2 that passed the gate they are the smallest (60.0 MiB), "
            "and their KL divergences are a tie, within two standard errors of each other "
            "(A 0.0528 ± 0.0010, B 0.0500 ± 0.0010).",
        )
    else:
        assert found.take == ("B",)
        assert found.sentences[0].startswith("Take B (run-B): of the 2 that passed the gate, A and")
        assert found.sentences[1].startswith(
            "A (run-A) passed too, is of the same size and further from the original"
        )


def test_sizes_more_than_a_hundredth_apart_are_two_sizes(make: Make) -> None:
    assert concluded(make("A", 60, 0.06), make("B", 60.7, 0.05)).take == ("A",)


def test_windows_that_both_read_tell_what_their_means_do_not(make: Make) -> None:
    """The text is uneven, and the second is a hundredth further from the original on all of it."""
    windows = [0.01, 0.09, 0.02, 0.08]
    first = make("A", 60, 0.05, 0.02, windows=windows)
    second = make("B", 60, 0.06, 0.02, windows=[each + 0.01 for each in windows] + [0.9])
    found = difference(second, first)
    assert found.value == pytest.approx(0.01)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert concluded(first, second).take == ("A",)
    assert difference(make("B", 60, 0.06, 0.02), first).tied
    assert concluded(first, first).take == ("A", "A")


def test_none_is_taken_where_none_passed_or_was_judged(make: Make) -> None:
    refused = make("A", 60, 0.3, verdict="inconclusive")
    unknown = make("B", 60, 0, verdict="not_validated")
    found = concluded(refused, unknown)
    assert found == Conclusion(
        (),
        (
            "Take none: no checkpoint passed the gate.",
            "A (run-A) was refused: inconclusive.",
            "B (run-B) was not judged.",
        ),
    )
    assert concluded(unknown, unknown).sentences == (
        "No checkpoint was judged, so that nothing says which to take.",
    )


def test_what_was_not_judged_alike_is_not_concluded_from(make: Make) -> None:
    passed = make("A", 60, 0.05), make("B", 50, 0.05)
    found = concluded(*passed, fair=False)
    assert found.take == ()
    assert found.sentences == (
        "A and B passed, and nothing says which to take: they were not judged alike.",
    )
    refused = make("B", 50, 0.3, verdict="broken")
    assert concluded(passed[0], refused, fair=False).sentences == (
        "Take A (run-A): it alone passed the gate, with 60.0 MiB and KL divergence "
        "0.0500 ± 0.0010.",
        "B (run-B) was refused: broken.",
    )
