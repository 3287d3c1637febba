"""Whether a Kubeflow starts a step that fails again, which a compiled pipeline cannot say.

Kubeflow's compiler writes how often and no ``retryPolicy`` (kubeflow/pipelines 2.17.0,
backend/src/v2/compiler/argocompiler/container.go), so the defaults of Argo's controller decide.
Those that 2.17 ships say ``OnError``, and to Argo a step that exits with an error, is killed, runs
out of memory or is evicted has not met an error: it has failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

PATCH = '{"templateDefaults":{"retryStrategy":{"limit":"0","retryPolicy":"Always"}}}'
"""What ``COMPILED_PIPELINE_SPEC_PATCH`` has to be at Kubeflow's API server.

Steps that ask for retries keep their own limit; all others, the engine's pods too, get none.
"""
_RETRYING = ("Always", "OnFailure")
_OF_ARGO = "OnFailure"
_FIRST_WITHOUT = (2, 17)


def asks_for_retries(specification: Mapping[str, Any]) -> bool:
    """Whether a step of a compiled pipeline asks to be started again when it fails."""
    components = [specification["root"], *specification.get("components", {}).values()]
    tasks = [task for part in components for task in part.get("dag", {}).get("tasks", {}).values()]
    return any("retryPolicy" in task for task in tasks)


def policy_of_run(detail: Mapping[str, Any]) -> str | None:
    """The policy that Argo went by in a run, or None where its record does not say.

    The run is as Kubeflow's API ``v1beta1`` gives it: it holds the workflow that was made of it,
    and once Argo has taken that up, with the controller's defaults.
    """
    runtime = detail.get("pipeline_runtime") or {}
    for name in ("workflow_manifest", "pipeline_manifest"):
        try:
            workflow = json.loads(runtime.get(name) or "null") or {}
        except ValueError:
            continue
        defaults = workflow.get("spec", {}).get("templateDefaults") or {}
        if policy := (defaults.get("retryStrategy") or {}).get("retryPolicy"):
            return str(policy)
        if workflow.get("status", {}).get("phase"):
            return _OF_ARGO
    return None


def note_on_retries(version: str, policy: str | None) -> str:
    """What to say to who relies on retries; empty where a step that fails is started again.

    The version is Kubeflow's, which its server may not know, the policy that of a run, if there is.
    """
    if policy in _RETRYING:
        return ""
    to_set = f"COMPILED_PIPELINE_SPEC_PATCH='{PATCH}'"
    if policy is not None:
        return (
            f"this Kubeflow starts no step again that fails (its newest run has retryPolicy "
            f"{policy}); set {to_set} at its API server"
        )
    known = re.match(r"v?(\d+)\.(\d+)", version)
    if known and tuple(map(int, known.groups())) < _FIRST_WITHOUT:
        return ""
    named = version if known else "2.17 and newer"
    return f"Kubeflow {named} starts no step again that fails, unless its API server has {to_set}"
