"""What Argo tells its exit handler, as a notice."""

from __future__ import annotations

import json

import pytest

from quantlib.telemetry.argo import notice_of
from quantlib.telemetry.notices import Notice


def quoted(*nodes: dict[str, str]) -> str:
    """``workflow.failures``: Go quotes the JSON of it."""
    return json.dumps(json.dumps(nodes))


DAG = {"displayName": "quantize", "message": "", "templateName": "pipeline", "phase": "Failed"}
GATE = {
    "displayName": "gate",
    "message": "main: Error (exit code 3): the checkpoint was refused: kl_mean is 0.3",
    "templateName": "gate",
    "phase": "Failed",
    "podName": "quantize-x-gate-1",
    "finishedAt": "2026-11-28T21:00:00Z",
}


@pytest.mark.parametrize(
    ("node", "code", "outcome"),
    [
        (GATE, 3, "refused"),
        (GATE | {"message": "main: OOMKilled (exit code 137)"}, 137, "failed"),
        (GATE | {"message": "The node was low on resource: memory."}, None, "failed"),
    ],
)
def test_a_pod_that_failed(node: dict[str, str], code: int | None, outcome: str) -> None:
    later = GATE | {"templateName": "plan", "finishedAt": "2026-11-28T21:00:01Z"}
    notice = notice_of("Failed", quoted(DAG, later, node), "hf://org/name", "quantize-x")
    assert notice == Notice("quantize-x", "hf://org/name", "gate", code, node["message"])
    assert notice.outcome == outcome


@pytest.mark.parametrize("failures", ["null", '"null"', "[]", "no JSON", quoted(DAG)])
def test_a_workflow_that_no_pod_ended(failures: str) -> None:
    notice = notice_of("Error", failures, "", "quantize-x")
    assert (notice.outcome, notice.step) == ("failed", "")
    assert notice.reason == f"the workflow ended as Error: {failures}"


def test_a_workflow_that_succeeded() -> None:
    assert notice_of("Succeeded", '"null"', "m", "x").outcome == "passed"
