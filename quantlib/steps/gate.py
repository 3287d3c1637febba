"""The step that lets a checkpoint pass that was judged good enough, and fails the run otherwise.

It is a step of its own because a step that fails loses its outputs in Kubeflow: ``validate`` always
delivers its report and verdict, and this one makes a failed verdict visible.
"""

from __future__ import annotations

from quantlib.errors import GateFailedError
from quantlib.steps.contract import StepCall

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


def main(call: StepCall) -> None:
    gate(call.text("verdict"), call.text("reason"))
