"""What a step asks of Kubernetes, by a profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.compiling import Compilation, CompileOptions, prepare
from pipelines.graph import WATCH, Output
from pipelines.pods import Pod, pod_of, telling
from pipelines.profiles import PLANNED_STEPS, Profile

PROFILE = """
scratch: {size: 9Gi, storage_class: fast}
retries: {count: 0}
pushgateway: http://gateway.monitoring:9091
steps:
  calibrate: {cpu: "3", memory: 5Gi, gpus: 2}
  quantize: {memory: 7Gi}
"""


def pods(compilation: Compilation) -> dict[str, Pod]:
    return {step.name: pod_of(step, compilation) for step in WATCH.steps}


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Pod]:
    (tmp_path / "profile.yaml").write_text(PROFILE)
    return pods(prepare(WATCH, CompileOptions(str(tmp_path / "profile.yaml"))))


def test_the_plan_is_asked_for_what_the_profile_leaves_open(own: dict[str, Pod]) -> None:
    for name, pod in pods(prepare(WATCH, CompileOptions("gpu"))).items():
        whats = ("cpus", "memory", "gpus") if name in PLANNED_STEPS else ()
        assert pod.planned == tuple(Output("plan", f"{name}_{what}") for what in whats)
    assert own["calibrate"].planned == ()
    assert (own["calibrate"].cpu, own["calibrate"].memory) == ("3", "5Gi")
    assert own["calibrate"].devices == "2"
    assert own["quantize"].planned == tuple(
        Output("plan", f"quantize_{what}") for what in ("cpus", "gpus")
    )


def test_without_accelerators_none_are_asked_for() -> None:
    for pod in pods(prepare(WATCH, CompileOptions("local"))).values():
        assert (pod.accelerator, pod.devices) == (None, "0")


def test_a_step_has_scratch_as_large_as_its_work(own: dict[str, Pod]) -> None:
    sizes = {name: (pod.volumes[0].size, pod.volumes[0].storage_class) for name, pod in own.items()}
    assert sizes.pop("resolve") == ("1Gi", None)
    assert set(sizes.values()) == {("9Gi", "fast")}


def test_steps_push_their_figures_where_the_profile_says_so(own: dict[str, Pod]) -> None:
    gateways = {pod.environment["QUANTLIB_PUSHGATEWAY"] for pod in own.values()}
    assert gateways == {"http://gateway.monitoring:9091"}
    for pod in pods(prepare(WATCH, CompileOptions("local"))).values():
        assert "QUANTLIB_PUSHGATEWAY" not in pod.environment


def test_a_pod_that_tells_gets_the_webhook_from_a_secret() -> None:
    quiet = Pod("image", 7, environment={"A": "b"}, secrets={"s": {"X": "x"}})
    assert telling(quiet, Profile()) == quiet
    link = "https://kubeflow.example/#/runs/details/{run}"
    told = telling(quiet, Profile(notify_secret="hooks", run_link=link))
    assert told.secrets == {"s": {"X": "x"}, "hooks": {"QUANTLIB_NOTIFY_URL": "url"}}
    assert told.environment == {
        "A": "b",
        "QUANTLIB_NOTIFY_PASSED": "no",
        "QUANTLIB_RUN_LINK": link,
    }


def test_no_step_is_started_again_where_the_profile_says_so(own: dict[str, Pod]) -> None:
    assert {pod.retries for pod in own.values()} == {None}


def test_credentials_of_a_registry_are_for_who_looks_at_the_destination(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text("registry_secret: registry\n")
    found = pods(prepare(WATCH, CompileOptions(str(tmp_path / "profile.yaml"))))
    mounted = {
        name: pod.environment.get("DOCKER_CONFIG")
        for name, pod in found.items()
        if any(volume.secret == "registry" for volume in pod.volumes)
    }
    assert mounted == {"resolve": "/registry", "publish": "/registry"}


def test_publish_alone_tells_registries(tmp_path: Path) -> None:
    profile = "model_registry: http://registry.kubeflow:8080\nmlflow: https://mlflow.example.org\n"
    (tmp_path / "profile.yaml").write_text(profile)
    found = pods(prepare(WATCH, CompileOptions(str(tmp_path / "profile.yaml"))))
    told = {
        name: (pod.environment["QUANTLIB_MODEL_REGISTRY"], pod.environment["QUANTLIB_MLFLOW"])
        for name, pod in found.items()
        if "QUANTLIB_MLFLOW" in pod.environment
    }
    addresses = ("http://registry.kubeflow:8080", "https://mlflow.example.org")
    assert told == {"publish": addresses}
