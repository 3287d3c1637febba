"""The overlays on a real API server (see tests/kube_api.py)."""

import json
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def may(applied: Any, account: str, verb: str, resource: str, namespace: str, name: str) -> bool:
    group, _, plural = resource.rpartition("/")
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:quantlib:{account}",
            "groups": [
                "system:serviceaccounts",
                "system:serviceaccounts:quantlib",
                "system:authenticated",
            ],
            "resourceAttributes": {
                "group": group,
                "resource": plural,
                "verb": verb,
                "namespace": namespace,
                "name": name,
            },
        },
    }
    answer = applied.server.kubectl("create", "-f", "-", "-o", "json", document=review)
    return json.loads(answer.stdout)["status"]["allowed"]


def test_every_object_is_created(applied: Any, documents: list[dict[str, Any]]) -> None:
    lines = applied.output.splitlines()
    assert len(lines) == len(documents)
    assert all(line.endswith(" created") for line in lines), applied.output


def test_applying_again_changes_nothing(applied: Any, documents: list[dict[str, Any]]) -> None:
    for arguments in (["--dry-run=server"], []):
        again = applied.server.kubectl("apply", *arguments, "-k", str(applied.overlay))
        lines = [line.removesuffix(" (server dry run)") for line in again.stdout.splitlines()]
        assert len(lines) == len(documents)
        assert all(line.endswith(" unchanged") for line in lines), again.stdout
        assert again.stderr == ""


def test_the_server_refuses_what_is_wrong(applied: Any, documents: list[dict[str, Any]]) -> None:
    [policy] = [each for each in documents if each["metadata"]["name"] == "internet"]
    policy = json.loads(json.dumps(policy))
    policy["spec"]["egress"][0]["to"][0]["ipBlock"]["except"].append("11.0.0.0/33")
    refused = applied.server.kubectl(
        "apply", "--dry-run=server", "-f", "-", document=policy, check=False
    )
    assert refused.returncode != 0
    assert "11.0.0.0/33" in refused.stderr


@pytest.mark.parametrize(
    ("account", "verb", "resource", "namespace", "name", "expected"),
    [
        ("quantlib-steps", "list", "secrets", "quantlib", "", False),
        ("quantlib-steps", "get", "secrets", "quantlib", "quantlib-s3", False),
        ("quantlib-steps", "get", "pods", "quantlib", "", False),
        ("quantlib-steps", "create", "pods", "quantlib", "", False),
        ("quantlib-runner", "create", "argoproj.io/workflowtaskresults", "quantlib", "", True),
        ("quantlib-runner", "create", "argoproj.io/workflowtaskresults", "default", "", False),
        *(
            ("quantlib-runner", verb, "argoproj.io/workflowtaskresults", "quantlib", "one", may)
            for verb, may in (
                ("patch", True),
                ("get", False),
                ("list", False),
                ("update", False),
                ("delete", False),
            )
        ),
        *(
            ("quantlib-runner", verb, "pods", namespace, "one", may)
            for verb, namespace, may in (
                ("get", "quantlib", True),
                ("get", "quantlib-serving", False),
                ("list", "quantlib", False),
                ("create", "quantlib", False),
                ("patch", "quantlib", False),
            )
        ),
        ("quantlib-runner", "create", "argoproj.io/workflows", "quantlib", "", False),
        ("quantlib-runner", "get", "configmaps", "quantlib", "kfp-launcher", True),
        ("quantlib-runner", "get", "configmaps", "quantlib", "other", False),
        ("quantlib-runner", "get", "secrets", "quantlib", "quantlib-s3", False),
        ("quantlib-runner", "get", "secrets", "quantlib", "mlpipeline-minio-artifact", True),
        ("quantlib-runner", "list", "secrets", "quantlib", "", False),
        ("quantlib-runner", "delete", "pods", "quantlib", "", False),
        ("quantlib-watch", "create", "pipelines.kubeflow.org/runs", "quantlib", "", True),
        ("quantlib-watch", "list", "pipelines.kubeflow.org/runs", "quantlib", "", True),
        ("quantlib-watch", "create", "pipelines.kubeflow.org/experiments", "quantlib", "", True),
        ("quantlib-watch", "delete", "pipelines.kubeflow.org/runs", "quantlib", "", False),
        ("quantlib-watch", "create", "pipelines.kubeflow.org/pipelines", "quantlib", "", False),
        ("quantlib-watch", "list", "secrets", "quantlib", "", False),
        *(
            ("quantlib-promote", verb, f"serving.kserve.io/{kind}", "quantlib-serving", name, may)
            for verb, name, may in (
                ("get", "smollm2", True),
                ("patch", "smollm2", True),
                ("patch", "other", False),
                ("patch", "", False),
                ("watch", "smollm2", False),
            )
            for kind in ("inferenceservices", "llminferenceservices")
        ),
        *(
            ("quantlib-promote", verb, "apps/deployments", "quantlib-serving", name, may)
            for verb, name, may in (
                ("get", "smollm2-predictor", True),
                ("get", "smollm2-canary-predictor", True),
                ("get", "smollm2", False),
                ("patch", "smollm2-predictor", False),
                ("patch", "smollm2", False),
            )
        ),
        ("quantlib-promote", "get", "services", "quantlib-serving", "smollm2", False),
        ("quantlib-promote", "patch", "services", "quantlib-serving", "smollm2", False),
        *(
            ("quantlib-promote", verb, f"serving.kserve.io/{resource}", namespace, "", allowed)
            for verb, allowed in (("get", True), ("list", True), ("patch", False))
            for resource, namespace in (
                ("servingruntimes", "quantlib-serving"),
                ("clusterservingruntimes", ""),
            )
        ),
        (
            "quantlib-promote",
            "list",
            "serving.kserve.io/servingruntimes",
            "quantlib",
            "",
            False,
        ),
        *(
            ("quantlib-promote", verb, "serving.kserve.io/clusterstoragecontainers", "", name, may)
            for verb, name, may in (
                ("get", "quantlib-verified", True),
                ("get", "default", False),
                ("list", "", False),
                ("patch", "quantlib-verified", False),
            )
        ),
        ("quantlib-promote", "create", "events", "quantlib-serving", "", True),
        *(
            ("quantlib-promote", verb, "coordination.k8s.io/leases", "quantlib-serving", name, may)
            for name in ("quantlib-promote.inferenceservices.smollm2", "another")
            for verb, may in (
                ("create", True),
                ("get", name != "another"),
                ("patch", name != "another"),
                ("delete", False),
            )
        ),
        ("quantlib-promote", "create", "apps/deployments", "quantlib-serving", "", False),
        ("quantlib-promote", "delete", "services", "quantlib-serving", "", False),
        ("quantlib-promote", "list", "secrets", "quantlib-serving", "", False),
        (
            "quantlib-promote",
            "patch",
            "serving.kserve.io/inferenceservices",
            "quantlib",
            "",
            False,
        ),
    ],
)
def test_rights(
    applied: Any,
    account: str,
    verb: str,
    resource: str,
    namespace: str,
    name: str,
    expected: bool,
) -> None:
    assert may(applied, account, verb, resource, namespace, name) is expected
