"""The step that fails a run whose checkpoint was refused.

It is a step of its own because a step that fails loses its outputs in Kubeflow: ``validate`` always
delivers its report and verdict, and this one makes a failed verdict visible.
"""

from __future__ import annotations

from typing import NoReturn

from quantlib.errors import GateFailedError
from quantlib.steps.contract import StepCall


def gate(reason: str) -> NoReturn:
    """Refuses the checkpoint.

    Raises:
        GateFailedError: Always, with the reason.
    """
    raise GateFailedError(f"the checkpoint was refused: {reason or 'no reason was given'}")


def main(call: StepCall) -> None:
    gate(call.text("reason"))
