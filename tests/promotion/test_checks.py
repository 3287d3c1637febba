"""Who keeps a service, and how git and the cluster differ."""

from __future__ import annotations

from typing import Any

import pytest

from quantlib.promotion.checks import Allowances, managed_by, managed_problems
from quantlib.promotion.gitops import git_and_cluster
from quantlib.promotion.state import State

FIELDS = {"managedFields": [{"manager": "kubectl"}, {"manager": "argocd-controller"}]}


def service(**metadata: Any) -> dict[str, Any]:
    return {"kind": "InferenceService", "metadata": {"name": "tiny", **metadata}}


@pytest.mark.parametrize(
    ("metadata", "keeper"),
    [
        ({}, None),
        ({"annotations": None, "labels": {"app.kubernetes.io/instance": "tiny"}}, None),
        ({"managedFields": [{"manager": "quantlib"}, {}]}, None),
        (
            {"annotations": {"argocd.argoproj.io/tracking-id": "serving:x"}},
            "Argo CD (annotation argocd.argoproj.io/tracking-id: serving:x)",
        ),
        (
            {"labels": {"argocd.argoproj.io/instance": "serving"}},
            "Argo CD (label argocd.argoproj.io/instance: serving)",
        ),
        (
            {"labels": {"kustomize.toolkit.fluxcd.io/name": "apps"}},
            "Flux (label kustomize.toolkit.fluxcd.io/name: apps)",
        ),
        (
            {"labels": {"helm.toolkit.fluxcd.io/name": "apps"}},
            "Flux (label helm.toolkit.fluxcd.io/name: apps)",
        ),
        (FIELDS, "Argo CD (fields written by argocd-controller)"),
    ],
)
def test_who_keeps_a_service(metadata: dict[str, Any], keeper: str | None) -> None:
    assert managed_by(service(**metadata)) == keeper


def test_a_service_that_git_keeps_is_changed_there_unless_that_is_allowed() -> None:
    kept = service(**FIELDS)
    [problem] = managed_problems(kept, Allowances())
    assert str(problem) == (
        "InferenceService tiny: is kept by Argo CD (fields written by argocd-controller), which "
        "puts back what git says; promote with --repo and --overlay, or change it all the same "
        "with --allow-managed"
    )
    assert not list(managed_problems(kept, Allowances(managed=True)))
    assert not list(managed_problems(service(), Allowances()))


def test_git_and_the_cluster_are_compared_by_what_they_serve() -> None:
    digest = "3f" * 32
    uri = f"s3://models/tiny/{digest}/"
    noted = State(uri, (), {"quantlib.io/digest": f"sha256:{digest}"})
    assert git_and_cluster(noted, State(uri, ("--other",), noted.annotations)) is None
    assert git_and_cluster(noted, State("s3://models/by-hand/", ())) == (
        f"note: git says {uri}, and the cluster serves s3://models/by-hand/: it was changed "
        "directly, or has not taken over git yet"
    )
    assert "the cluster serves nothing" in (git_and_cluster(noted, State(None, ())) or "")
