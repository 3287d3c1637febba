"""What the templates of containers ask of Kubernetes."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pod_security import restricted_problems

Document = dict[str, Any]
TemplateOf = Callable[[str, str], Document]


def containers(document: Document) -> dict[str, Document]:
    return {each["name"]: each for each in document["spec"]["templates"] if "container" in each}


def planned(template: Document) -> Document:
    """The resources that a template's patch of its pod asks for."""
    (main,) = json.loads(template["podSpecPatch"])["containers"]
    assert main["name"] == "main"
    return main["resources"]


@pytest.mark.parametrize("cluster", ["gpu", "local", "own"])
@pytest.mark.parametrize("graph", ["quantize", "watch"])
def test_every_pod_is_restricted(template_of: TemplateOf, graph: str, cluster: str) -> None:
    for name, template in containers(template_of(graph, cluster)).items():
        pod = {field: template[field] for field in ("securityContext", "volumes")}
        container = template["container"]
        assert restricted_problems(pod | {"containers": [container | {"name": "main"}]}) == [], name
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert template["metadata"]["labels"]["quantlib.io/run"] == "{{workflow.name}}"
        mounted = [each["name"] for each in container["volumeMounts"]]
        assert mounted == [volume["name"] for volume in template["volumes"]]
        paths = {each["mountPath"] for each in container["volumeMounts"]}
        assert {"/tmp", "/outputs"} <= paths


def test_the_plan_says_what_the_steps_that_compute_ask_for(template_of: TemplateOf) -> None:
    known = containers(template_of("quantize", "gpu"))
    patched = {name for name, template in known.items() if "podSpecPatch" in template}
    assert patched == {"calibrate", "quantize", "validate", "tasks"}
    for name, cpus, memory, gpus in (
        ("calibrate", "calibrate_cpus", "calibrate_memory", "calibrate_gpus"),
        ("quantize", "cpus", "memory", "gpus"),
        ("validate", "validate_cpus", "validate_memory", "gpus"),
    ):
        tags = [f"{{{{inputs.parameters.{each}}}}}" for each in (cpus, memory, gpus)]
        assert planned(known[name]) == {
            "requests": {"cpu": tags[0], "memory": tags[1]},
            "limits": {"memory": tags[1], "nvidia.com/gpu": tags[2]},
        }
        assert "resources" not in known[name]["container"]


def test_what_the_profile_says_is_not_left_to_the_plan(template_of: TemplateOf) -> None:
    known = containers(template_of("quantize", "local"))
    assert known["quantize"]["container"]["resources"] == {"requests": {"cpu": "1"}}
    memory = "{{inputs.parameters.memory}}"
    assert planned(known["quantize"]) == {
        "requests": {"memory": memory},
        "limits": {"memory": memory},
    }
    assert "tolerations" not in known["quantize"]
    assert known["fetch"]["container"]["resources"] == {
        "requests": {"cpu": "1", "memory": "2Gi"},
        "limits": {"memory": "2Gi"},
    }
    own = containers(template_of("quantize", "own"))["validate"]
    assert own["container"]["resources"] == {"limits": {"cpu": "4", "example.com/gpu": "2"}}


def test_a_failed_step_is_started_again_unless_that_would_end_the_same(
    template_of: TemplateOf,
) -> None:
    known = containers(template_of("quantize", "own"))
    retried = {name for name, template in known.items() if "retryStrategy" in template}
    assert retried == known.keys() - {"plan", "gate", "report-outcome"}
    strategy = known["fetch"]["retryStrategy"]
    assert strategy["limit"] == "2"
    assert strategy["retryPolicy"] == "Always"
    assert strategy["backoff"] == {"duration": "5s", "factor": "3", "maxDuration": "900s"}
    for code in (1, 2, 3, 137, -1):
        scope = {"asInt": int, "lastRetry": SimpleNamespace(exitCode=str(code))}
        assert eval(strategy["expression"], scope) is (code not in (2, 3))


def test_steps_on_gpus_go_where_the_profile_says(template_of: TemplateOf) -> None:
    known = containers(template_of("quantize", "own"))
    for name, template in known.items():
        placed = template.keys() & {"nodeSelector", "affinity", "tolerations"}
        assert len(placed) == (
            3 if name in ("calibrate", "quantize", "validate", "tasks") else 0
        ), name
    template = known["calibrate"]
    assert template["nodeSelector"] == {"pool": "a"}
    (term,) = template["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z"]}]}
    assert template["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_volumes_are_made_for_the_pod_and_belong_to_its_user(template_of: TemplateOf) -> None:
    known = containers(template_of("quantize", "own"))
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "9Gi"}},
        "storageClassName": "fast",
    }
    scratch, shm, *_ = known["validate"]["volumes"]
    assert scratch == {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    assert shm == {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
    security = known["validate"]["securityContext"]
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 7
    on_disk = containers(template_of("quantize", "gpu"))["validate"]
    assert on_disk["volumes"][0] == {"name": "scratch", "emptyDir": {"sizeLimit": "400Gi"}}
    assert "fsGroup" not in on_disk["securityContext"]


def test_keys_are_taken_by_reference(template_of: TemplateOf) -> None:
    known = containers(template_of("watch", "own"))
    signing = {"name": "signing", "secret": {"secretName": "signing"}}
    mount = {"name": "signing", "mountPath": "/signing", "readOnly": True}
    assert signing in known["publish"]["volumes"]
    assert mount in known["publish"]["container"]["volumeMounts"]
    assert [name for name, each in known.items() if signing in each["volumes"]] == ["publish"]
    references = {
        name: {
            (source["name"], source["key"], entry["name"])
            for entry in each["container"].get("env", [])
            for source in entry.get("valueFrom", {}).values()
            if source["optional"] is True
        }
        for name, each in known.items()
    }
    store = {
        *(("quantlib-s3", name, name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        *(("quantlib-s3", name, name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION")),
    }
    hub = {("quantlib-hub", "HF_TOKEN", "HF_TOKEN")}
    password = {("signing", "password", "QUANTLIB_SIGNING_PASSWORD")}
    own = {"resolve": hub, "fetch": hub, "publish": hub | password}
    # It alone knows of pods that were killed, and tells once a run.
    assert references.pop("report-outcome") == {("hooks", "url", "QUANTLIB_NOTIFY_URL")}
    assert references == {name: store | own.get(name, set()) for name in references}


def test_a_pod_knows_its_image_and_how_long_it_may_take(template_of: TemplateOf) -> None:
    template = containers(template_of("quantize", "gpu"))["quantize"]
    environment = {each["name"]: each.get("value") for each in template["container"]["env"]}
    assert environment["QUANTLIB_IMAGE"] == template["container"]["image"]
    assert template["activeDeadlineSeconds"] == 48 * 3600
    assert template["metadata"]["labels"]["quantlib.io/step"] == "quantize"
