"""What is known of whether Kubeflow starts a step that fails again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.kubeflow.retries import PATCH, asks_for_retries, note_on_retries, policy_of_run


def detail(workflow: Any, manifest: str = "workflow_manifest") -> dict[str, Any]:
    return {"run": {"id": "r1"}, "pipeline_runtime": {manifest: json.dumps(workflow)}}


def with_policy(policy: str) -> dict[str, Any]:
    defaults = {"retryStrategy": {"limit": "2", "retryPolicy": policy}}
    return {"spec": {"templateDefaults": defaults}, "status": {"phase": "Running"}}


@pytest.mark.parametrize(
    ("run", "policy"),
    [
        (detail(with_policy("OnError")), "OnError"),
        (detail(with_policy("Always")), "Always"),
        (detail({"spec": json.loads(PATCH)}, "pipeline_manifest"), "Always"),
        (detail({"spec": {"templates": []}, "status": {"phase": "Failed"}}), "OnFailure"),
        (detail({"spec": {"templates": []}, "status": {}}, "pipeline_manifest"), None),
        (detail(None), None),
        ({"pipeline_runtime": {"workflow_manifest": "cut o"}}, None),
        ({"run": {}}, None),
    ],
)
def test_a_run_tells_what_argo_goes_by(run: dict[str, Any], policy: str | None) -> None:
    assert policy_of_run(run) == policy


@pytest.mark.parametrize(
    ("version", "policy", "said"),
    [
        ("2.17.0", "Always", ""),
        ("2.17.0", "OnFailure", ""),
        ("2.17.0", "OnError", "its newest run has retryPolicy OnError); set"),
        ("2.16.0", "OnError", "its newest run has retryPolicy OnError); set"),
        ("2.17.0", None, "Kubeflow 2.17.0 starts no step again that fails, unless"),
        ("3.0.0", None, "Kubeflow 3.0.0 starts no step again that fails, unless"),
        ("unknown", None, "Kubeflow 2.17 and newer starts no step again that fails, unless"),
        ("", None, "Kubeflow 2.17 and newer"),
        ("2.16.1", None, ""),
    ],
)
def test_the_note_says_what_to_set(version: str, policy: str | None, said: str) -> None:
    note = note_on_retries(version, policy)
    assert said in note
    assert bool(note) == bool(said)
    assert not note or f"COMPILED_PIPELINE_SPEC_PATCH='{PATCH}'" in note
    assert "\n" not in note


def test_only_what_asks_for_retries_needs_them() -> None:
    task: dict[str, Any] = {"componentRef": {"name": "comp-fetch"}}
    plain = {"root": {"dag": {"tasks": {"fetch": task}}}, "components": {"comp-fetch": {}}}
    assert not asks_for_retries(plain)
    retried = {"dag": {"tasks": {"fetch": task | {"retryPolicy": {"maxRetryCount": 3}}}}}
    assert asks_for_retries(plain | {"root": retried})
    assert asks_for_retries(plain | {"components": {"comp-ranges": retried}})
