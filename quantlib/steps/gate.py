"""The step that lets a checkpoint pass that was judged good enough, and fails the run otherwise.

It is a step of its own because a step that fails loses its outputs in Kubeflow: ``validate`` always
delivers its report and verdict, and this one makes a failed verdict visible.
"""

from __future__ import annotations

from collections.abc import Mapping

from quantlib.errors import GateFailedError
from quantlib.steps.contract import StepCall
from quantlib.verdicts import OUTCOMES

PASSED = "passed"

_REFUSED = {
    "inconclusive": "it is not known whether the checkpoint is good enough",
    "broken": "the checkpoint is broken",
}


def gate(verdict: str, reason: str) -> None:
    """Refuses a checkpoint that did not pass.

    Raises:
        GateFailedError: It did not, with the reason; its exit code tells the verdict.
    """
    if verdict != PASSED:
        what = _REFUSED.get(verdict, "the checkpoint was refused")
        raise GateFailedError(f"{what}: {reason or 'no reason was given'}", verdict)


def together(found: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """The worst of several verdicts, with the reasons of all that did not pass.

    Args:
        found: Verdict and reason, by what judged.
    """
    refused = {name: each for name, each in found.items() if each[0] != PASSED}
    if not refused:
        return PASSED, ""
    verdict = max((verdict for verdict, _ in refused.values()), key=_rank)
    reasons = (f"{name}: {reason}" if name else reason for name, (_, reason) in refused.items())
    return verdict, "; ".join(filter(None, reasons))


def _rank(verdict: str) -> int:
    return OUTCOMES.index(verdict) if verdict in OUTCOMES else 0


def main(call: StepCall) -> None:
    judged = {
        "": (call.text("verdict"), call.text("reason")),
        "tasks": (call.text("tasks_verdict"), call.text("tasks_reason")),
    }
    gate(*together(judged))
