"""What is told when a step ends: to Prometheus, to a webhook, and to Kubernetes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantlib.errors import QuantlibError
from quantlib.report.build import model_name
from quantlib.runtime.log import RUN_VARIABLE
from quantlib.steps import STEP_NAMES
from quantlib.steps.contract import StepCall
from quantlib.store import Receipt, read_lineage
from quantlib.telemetry.figures import figures_of_process
from quantlib.telemetry.gateway import push_figures
from quantlib.telemetry.notices import Notice, notify

TERMINATION_LOG = Path("/dev/termination-log")
"""What is written here stands in the pod's status, and in the message of Argo's node."""

_TERMINATION_BYTES = 4096


def tell_ending(
    step: str, call: StepCall | None, exit_code: int, reason: str, seconds: float
) -> None:
    """Tells how a step ended, whoever wants to know; never fails.

    Args:
        step: Its name.
        call: What it was called with; None where that could not be read.
        exit_code: What its process is about to exit with.
        reason: Why, in a line.
        seconds: How long it took.
    """
    receipts = [receipt for _, receipt in call.made] if call else []
    reused = call is not None and call.is_reused
    figures = figures_of_process(seconds, time.time(), exit_code, receipts, reused=reused)
    labels = {
        "step": step,
        "iteration": (call and call.iteration) or "",
        "model": _name(call) if call else "",
    }
    push_figures(labels, figures)
    if exit_code:
        with suppress(OSError):
            if TERMINATION_LOG.exists():
                TERMINATION_LOG.write_bytes(reason.encode()[:_TERMINATION_BYTES])
    if exit_code or step == STEP_NAMES[-1]:
        run = os.environ.get(RUN_VARIABLE, "")
        notify(Notice(run, _address(call) if call else "", step, exit_code, reason))


def _name(call: StepCall) -> str:
    """What the model is called, for a label; empty where the step does not know it."""
    facts = _model_facts(call)
    return model_name(facts) if facts else ""


def _address(call: StepCall) -> str:
    """What was asked for, for people: the model's address, else its name."""
    return call.parameters.get("model") or call.parameters.get("source") or _name(call)


def _model_facts(call: StepCall) -> Mapping[str, Any]:
    """What the fetch step found out of the model."""
    receipts: list[Receipt] = []
    with suppress(QuantlibError):  # it may be what the step has failed at
        if "model" in call.inputs:
            receipts = call.receipts("model")
        else:
            receipts = [each for made in call.made for each in read_lineage(*made)]
    return next((each.facts for each in receipts if each.step == "fetch"), {})
