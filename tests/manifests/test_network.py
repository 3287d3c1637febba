from typing import Any

import pytest
from network_policies import Address, Pod, Policy, allows

from quantlib.steps import ALL_STEP_NAMES

STEPS = [*ALL_STEP_NAMES, "watch"]
INTERNET = {"fetch", "resolve", "watch"}

HUB = Address("8.8.8.8")
METADATA_SERVICE = Address("169.254.169.254")
PRIVATE = [
    Address("10.0.0.7"),
    Address("172.20.0.1"),
    Address("192.168.1.1"),
    Address("100.64.0.1"),
]
DNS = Pod("kube-system", {"k8s-app": "kube-dns"})
PIPELINES_API = Pod("kubeflow", {"app": "ml-pipeline"})
METADATA_STORE = Pod("kubeflow", {"component": "metadata-grpc-server"})
ARTIFACT_STORE = Pod("kubeflow", {"app": "seaweedfs"})
OBJECT_STORE = Pod("quantlib", {"app.kubernetes.io/name": "object-store"})
STRANGER = Pod("quantlib", {"app": "stranger"})
SERVED = Pod("quantlib-serving", {"app": "model"})


def step_pod(step: str) -> Pod:
    return Pod("quantlib", {"quantlib.io/step": step})


def run_pod(step: str | None = None) -> Pod:
    """A pod of a Kubeflow run: a step's, or a driver's."""
    labels = {
        "workflows.argoproj.io/workflow": "run",
        "pipelines.kubeflow.org/v2_component": "true",
    }
    return Pod("quantlib", labels | ({"quantlib.io/step": step} if step else {}))


@pytest.fixture(scope="session")
def policies(documents: list[dict[str, Any]]) -> list[Policy]:
    return [each for each in documents if each["kind"] == "NetworkPolicy"]


def test_only_what_asks_the_hub_may_name_any_address(policies: list[Policy]) -> None:
    anywhere = [
        policy
        for policy in policies
        for rule in policy["spec"].get("egress", [])
        for peer in rule.get("to", [{"ipBlock": {"cidr": "0.0.0.0/0"}}])
        if peer.get("ipBlock", {}).get("cidr", "").endswith("/0") or peer in ({}, None)
    ]
    [policy] = anywhere
    [expression] = policy["spec"]["podSelector"]["matchExpressions"]
    assert expression["key"] == "quantlib.io/step"
    assert set(expression["values"]) == INTERNET


@pytest.mark.parametrize("step", STEPS)
def test_who_reaches_the_internet(policies: list[Policy], step: str) -> None:
    for pod in (step_pod(step), run_pod(step)):
        assert allows(policies, pod, HUB, 443) is (step in INTERNET)
        assert not allows(policies, pod, HUB, 80)
        assert not allows(policies, pod, METADATA_SERVICE, 80)
        assert not allows(policies, pod, METADATA_SERVICE, 443)
        assert not any(allows(policies, pod, each, 443) for each in PRIVATE)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_reaches_names_and_the_store(
    policies: list[Policy], step: str, overlay: str
) -> None:
    pod = step_pod(step)
    assert allows(policies, pod, DNS, 53, "UDP")
    if overlay == "local":
        assert allows(policies, pod, OBJECT_STORE, 8333)
        assert not allows(policies, pod, OBJECT_STORE, 9333), "its master takes no credentials"
    else:
        assert allows(policies, pod, Address("10.0.240.9"), 443)
        assert not allows(policies, pod, OBJECT_STORE, 8333)


@pytest.mark.parametrize("step", [None, *ALL_STEP_NAMES])
def test_pods_of_a_run_reach_what_runs_them(
    policies: list[Policy], step: str | None, overlay: str
) -> None:
    pod = run_pod(step)
    control_plane = {"local": ("172.18.0.2", 6443), "gpu-cloud": ("10.0.250.9", 443)}[overlay]
    assert allows(policies, pod, Address(control_plane[0]), control_plane[1])
    assert allows(policies, pod, PIPELINES_API, 8887)
    assert allows(policies, pod, METADATA_STORE, 8080)
    assert allows(policies, pod, ARTIFACT_STORE, 8333)
    assert not allows(policies, pod, PIPELINES_API, 8888), "runs start no runs"
    assert not allows(policies, pod, Pod("default", PIPELINES_API.labels), 8887)


def test_the_watcher_starts_runs_and_nothing_else(policies: list[Policy]) -> None:
    watch = step_pod("watch")
    assert allows(policies, watch, PIPELINES_API, 8888)
    assert not allows(policies, watch, PIPELINES_API, 8887)
    assert not allows(policies, watch, ARTIFACT_STORE, 8333)


@pytest.mark.parametrize("pod", [step_pod("fetch"), run_pod("quantize"), STRANGER, OBJECT_STORE])
def test_nothing_reaches_our_pods_but_the_store_s_clients(policies: list[Policy], pod: Pod) -> None:
    for other in (STRANGER, SERVED, step_pod("plan"), PIPELINES_API):
        if pod is OBJECT_STORE and other in (step_pod("plan"), SERVED):
            continue
        assert not allows(policies, other, pod, 8333)
    for other in (STRANGER, SERVED, step_pod("plan"), PIPELINES_API):
        assert not allows(policies, pod, SERVED, 8080)


def test_other_pods_are_cut_off(policies: list[Policy]) -> None:
    for target in (HUB, METADATA_SERVICE, PIPELINES_API, OBJECT_STORE, SERVED):
        assert not allows(policies, STRANGER, target, 443)
    assert allows(policies, STRANGER, DNS, 53, "UDP")


def test_the_bucket_job_reaches_the_store_only(policies: list[Policy], overlay: str) -> None:
    job = Pod("quantlib", {"app.kubernetes.io/name": "object-store-bucket"})
    assert allows(policies, job, OBJECT_STORE, 8333) is (overlay == "local")
    assert not allows(policies, job, HUB, 443)


def serving_pod() -> Pod:
    return Pod("quantlib-serving", {"serving.kserve.io/inferenceservice": "smollm2"})


def test_what_is_served_reaches_its_store_and_nothing_else(
    policies: list[Policy], overlay: str
) -> None:
    served = serving_pod()
    assert allows(policies, served, DNS, 53, "UDP")
    if overlay == "local":
        assert allows(policies, served, OBJECT_STORE, 8333)
        assert not allows(policies, served, OBJECT_STORE, 9333)
    else:
        assert allows(policies, served, Address("10.0.240.9"), 443)
    for target in (HUB, METADATA_SERVICE, *PRIVATE, STRANGER, SERVED, PIPELINES_API):
        for port in (80, 443, 8080, 8888):
            assert not allows(policies, served, target, port)


def test_who_asks_what_is_served(policies: list[Policy]) -> None:
    gateway = Pod("gateway", {}, {"quantlib.io/serving-client": "true"})
    for port in (8080, 8000):
        assert allows(policies, gateway, serving_pod(), port)
        for stranger in (STRANGER, step_pod("fetch"), Pod("gateway", {}), serving_pod()):
            assert not allows(policies, stranger, serving_pod(), port)
    assert not allows(policies, gateway, serving_pod(), 22)
