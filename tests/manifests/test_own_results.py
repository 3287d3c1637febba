"""The component by which pods of a run report for their own nodes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from manifests.conftest import MANIFESTS, build_with, find

NAME = "quantlib-own-results"
COMPONENT = MANIFESTS / "components" / "own-results"


def documents_of(*path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFESTS.joinpath(*path).read_text()))


@pytest.fixture
def policy() -> dict[str, Any]:
    return find(documents_of("components", "own-results", "policy.yaml"), *OF_THE_POLICY)


OF_THE_POLICY = ("ValidatingAdmissionPolicy", NAME)


def test_it_fits_the_schema_of_a_recent_kubernetes() -> None:
    for document in documents_of("components", "own-results", "policy.yaml"):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_it_is_of_what_the_role_allows_to_the_account_of_runs(policy: dict[str, Any]) -> None:
    role = find(documents_of("base", "accounts.yaml"), "Role", "quantlib-runner")
    [allowed] = [rule for rule in role["rules"] if "argoproj.io" in rule["apiGroups"]]
    assert set(allowed["verbs"]) == {"create", "patch"}  # an update is not to be let through
    [matched] = policy["spec"]["matchConstraints"]["resourceRules"]
    assert matched["resources"] == allowed["resources"]
    assert matched["apiGroups"] == allowed["apiGroups"]
    assert matched["operations"] == ["CREATE", "UPDATE"]  # as admission calls the two
    [condition] = policy["spec"]["matchConditions"]
    assert '"system:serviceaccount:quantlib:quantlib-runner"' in condition["expression"]


def test_what_cannot_be_judged_is_refused_and_in_the_runs_namespace_alone(
    policy: dict[str, Any],
) -> None:
    assert policy["spec"]["failurePolicy"] == "Fail"
    written = documents_of("components", "own-results", "policy.yaml")
    binding = find(written, "ValidatingAdmissionPolicyBinding", NAME)["spec"]
    assert (binding["policyName"], binding["validationActions"]) == (NAME, ["Deny"])
    selected = binding["matchResources"]["namespaceSelector"]["matchLabels"]
    assert selected == {"kubernetes.io/metadata.name": "quantlib"}


def test_it_is_added_to_each_overlay(overlay: str, tmp_path: Path) -> None:
    built = build_with(overlay, COMPONENT, tmp_path.resolve())
    assert find(built, *OF_THE_POLICY)["spec"]["validations"]
