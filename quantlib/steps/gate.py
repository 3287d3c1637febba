"""The step that lets a checkpoint pass that was judged good enough, and fails the run otherwise.

It is a step of its own because a step that fails loses its outputs in Kubeflow: ``validate`` always
delivers its report and verdict, and this one makes a failed verdict visible.
"""

from __future__ import annotations

from quantlib.errors import GateFailedError
from quantlib.steps.contract import StepCall

PASSED = "passed"


def gate(verdict: str, reason: str) -> None:
    """Refuses a checkpoint that did not pass.

    Raises:
        GateFailedError: It did not, with the reason.
    """
    if verdict != PASSED:
        raise GateFailedError(f"the checkpoint was refused: {reason or 'no reason was given'}")


def main(call: StepCall) -> None:
    gate(call.text("verdict"), call.text("reason"))
