import subprocess
from typing import Any

import kubernetes_validate
import pytest
from manifests.conftest import of_kubernetes

Documents = list[dict[str, Any]]

CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "ClusterStorageContainer",
    "Namespace",
    "PriorityClass",
    "StorageClass",
}


def named(documents: Documents, kind: str, name: str) -> dict[str, Any]:
    [document] = [
        each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name
    ]
    return document


def test_kustomize_warns_of_nothing(built: subprocess.CompletedProcess[str]) -> None:
    assert built.stderr == ""


def test_every_document_fits_the_schema_of_a_recent_kubernetes(documents: Documents) -> None:
    version = kubernetes_validate.latest_version()
    for document in of_kubernetes(documents):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_check_sees_what_is_unknown(documents: Documents) -> None:
    broken = named(documents, "ResourceQuota", "quantlib") | {"sepc": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_everything_is_labelled_and_in_a_namespace_of_ours(documents: Documents) -> None:
    namespaces = {each["metadata"]["name"] for each in documents if each["kind"] == "Namespace"}
    assert namespaces == {"quantlib", "quantlib-serving"}
    for document in documents:
        kind, metadata = document["kind"], document["metadata"]
        if kind == "Namespace":
            # Kubeflow keeps a value of its own there, which its network policies select by.
            assert "app.kubernetes.io/part-of" not in metadata["labels"]
            continue
        assert metadata["labels"]["app.kubernetes.io/part-of"] == "quantlib", metadata["name"]
        if kind not in CLUSTER_SCOPED:
            assert metadata["namespace"] in namespaces, metadata["name"]


def test_the_names_that_the_pipeline_uses(documents: Documents, overlay: str) -> None:
    for kind, name in [
        ("ServiceAccount", "quantlib-steps"),
        ("ServiceAccount", "quantlib-runner"),
        ("ServiceAccount", "quantlib-watch"),
        ("ServiceAccount", "quantlib-promote"),
        ("PriorityClass", "quantlib-batch"),
        ("ResourceQuota", "quantlib"),
        ("LimitRange", "quantlib"),
    ]:
        named(documents, kind, name)
    config = named(documents, "ConfigMap", "quantlib-s3")["data"]
    assert config.keys() == {"AWS_ENDPOINT_URL_S3", "AWS_REGION"}
    scratch = named(documents, "StorageClass", "quantlib-scratch")
    assert scratch["volumeBindingMode"] == "WaitForFirstConsumer"


def test_examples_of_the_base_are_replaced(documents: Documents) -> None:
    scratch = named(documents, "StorageClass", "quantlib-scratch")
    assert scratch["provisioner"] != "kubernetes.io/no-provisioner"
    [rule] = named(documents, "NetworkPolicy", "kubernetes-api")["spec"]["egress"]
    assert not rule["to"][0]["ipBlock"]["cidr"].startswith("192.0.2.")


def test_credentials(documents: Documents, overlay: str) -> None:
    secrets = [each for each in documents if each["kind"] == "Secret"]
    roles = {
        each["metadata"]["name"]: each["metadata"].get("annotations", {})
        for each in documents
        if each["kind"] == "ServiceAccount"
    }
    with_role = {name for name, annotations in roles.items() if annotations}
    if overlay == "gpu-cloud":
        assert secrets == []
        assert with_role == {"quantlib-steps", "quantlib-runner"}
    else:
        [secret] = secrets
        assert secret["metadata"]["name"] == "quantlib-s3"
        assert secret["data"].keys() == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        assert with_role == set()


def test_what_states_no_disk_fits_on_a_node(documents: Documents) -> None:
    """A driver's pod has two or three such containers, and there is one for each step."""
    [limit] = named(documents, "LimitRange", "quantlib")["spec"]["limits"]
    assert limit["defaultRequest"]["ephemeral-storage"] == "1Gi"


def test_gpus_are_for_the_cloud_only(documents: Documents, overlay: str) -> None:
    hard = named(documents, "ResourceQuota", "quantlib")["spec"]["hard"]
    assert (hard["requests.nvidia.com/gpu"] == "0") is (overlay == "local")


def test_images_are_pinned(pod_specs: dict[str, dict[str, Any]]) -> None:
    for name, spec in pod_specs.items():
        for container in spec["containers"]:
            tag = container["image"].rpartition(":")[2]
            assert tag[:1].isdigit(), f"{name}: {container['image']}"
