"""What promotion writes so that pods verify what they serve."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from promotion.services import SERVICES

from quantlib.cli.verify import verify
from quantlib.errors import InvalidInputError
from quantlib.promotion.verified_start import STORAGE_CONTAINER, verified, verifies

MANIFESTS = Path(__file__).parents[2] / "manifests"
DIGEST = f"sha256:{'3f' * 32}"
S3 = f"s3://quantlib/models/tiny/{'3f' * 32}/"
PVC = f"pvc://models/published/tiny/{'3f' * 32}/"
FOLDER = f"/mnt/models/tiny/{'3f' * 32}"


@pytest.fixture
def installed() -> dict[str, Any]:
    """The container that we ship."""
    path = MANIFESTS / "components" / "verified-storage" / "storage-container.yaml"
    return yaml.safe_load(path.read_text())


def service(kind: str) -> dict[str, Any]:
    document = yaml.safe_load(SERVICES[kind])
    if kind == "Deployment":
        container = vllm_of(document)
        container["volumeMounts"] = [{"name": "model", "mountPath": "/mnt/models"}]
        document["spec"]["template"]["spec"]["volumes"] = [{"name": "model", "emptyDir": {}}]
    return document


def vllm_of(deployment: dict[str, Any]) -> dict[str, Any]:
    containers = deployment["spec"]["template"]["spec"]["containers"]
    [container] = [each for each in containers if each["name"] == "vllm"]
    return container


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    if document["kind"] == "InferenceService":
        return spec["predictor"]
    template = spec["template"]
    return template if document["kind"] == "LLMInferenceService" else template["spec"]


def test_an_inference_service_names_the_container_that_fetches(installed: Any) -> None:
    document = service("InferenceService")
    assert not verifies(document)
    changed = verified(document, S3, DIGEST, installed)
    assert pod_of(changed) == pod_of(document) | {"storageContainerName": STORAGE_CONTAINER}
    assert installed["metadata"]["name"] == STORAGE_CONTAINER
    assert verifies(changed)


@pytest.mark.parametrize(
    ("kind", "uri", "folder", "volume"),
    [
        ("InferenceService", PVC, "/mnt/models", "quantlib-published"),
        ("LLMInferenceService", PVC, "/mnt/models", "quantlib-published"),
        ("Deployment", FOLDER, FOLDER, "model"),
    ],
)
def test_a_volume_is_verified_by_an_init_container(
    installed: Any, kind: str, uri: str, folder: str, volume: str
) -> None:
    document = service(kind)
    pod_of(document)["initContainers"] = [{"name": "mine", "image": "mine:1"}]
    pod_of(document).setdefault("volumes", []).append({"name": "mine", "emptyDir": {}})
    before = copy.deepcopy(document)
    changed = verified(document, uri, DIGEST, installed)
    assert document == before
    assert verifies(changed)
    pod = pod_of(changed)
    mine, container = pod["initContainers"]
    assert mine == {"name": "mine", "image": "mine:1"}
    shipped = installed["spec"]["container"]
    assert container["image"] == shipped["image"]
    assert container["securityContext"] == shipped["securityContext"]
    assert container["command"] == ["python", "-m", "quantlib"]
    name, *words = container["args"]
    assert name == verify.name
    given = verify.make_context("verify", list(words)).params
    assert (given["published"], given["digest"]) == (folder, DIGEST)
    assert (str(given["public_key"]), given["require_signature"]) == ("/keys/release.pub", True)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts.keys() == {"/mnt/models", "/keys", "/scratch"}
    assert (mounts["/mnt/models"]["name"], mounts["/mnt/models"]["readOnly"]) == (volume, True)
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert len(volumes) == len(pod["volumes"])
    assert {mount["name"] for mount in container["volumeMounts"]} < volumes.keys()
    assert volumes["mine"] == {"name": "mine", "emptyDir": {}}
    assert volumes[mounts["/keys"]["name"]]["configMap"] == {"name": "quantlib-release-key"}
    if uri == PVC:
        assert mounts["/mnt/models"]["subPath"] == PVC.removeprefix("pvc://models/").rstrip("/")
        assert volumes[volume]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}


@pytest.mark.parametrize("kind", ["InferenceService", "LLMInferenceService"])
def test_the_next_checkpoint_takes_the_place_of_the_last(installed: Any, kind: str) -> None:
    document = service(kind)
    once = verified(document, PVC, DIGEST, installed)
    other = f"sha256:{'0' * 64}"
    uri = f"pvc://another/{'0' * 64}"
    twice = verified(once, uri, other, installed)
    assert twice == verified(document, uri, other, installed)


def test_a_service_that_leaves_its_volume_is_verified_where_it_goes(installed: Any) -> None:
    document = service("InferenceService")
    pod_of(document)["initContainers"] = [{"name": "mine"}]
    mounted = verified(document, PVC, DIGEST, installed)
    fetched = verified(mounted, S3, DIGEST, installed)
    assert pod_of(fetched) == pod_of(document) | {"storageContainerName": STORAGE_CONTAINER}
    back = verified(fetched, PVC, DIGEST, installed)
    assert back == mounted


def test_what_is_mounted_deepest_is_what_is_verified(installed: Any) -> None:
    document = service("Deployment")
    vllm_of(document)["volumeMounts"].append({"name": "deep", "mountPath": "/mnt/models/tiny"})
    [verifying] = pod_of(verified(document, FOLDER, DIGEST, installed))["initContainers"]
    assert verifying["volumeMounts"][0]["name"] == "deep"


@pytest.mark.parametrize(
    ("kind", "uri", "change", "reason"),
    [
        ("InferenceService", S3, None, "is not there, or cannot be seen.*kubectl apply -k"),
        ("InferenceService", S3, {"disabled": True}, "is disabled"),
        ("InferenceService", S3.replace("quantlib", "else"), {}, "is for s3://quantlib/models/"),
        ("InferenceService", f"gs://models/{'3f' * 32}", {}, "no way to verify gs://"),
        ("LLMInferenceService", S3, {}, "no way to verify s3://"),
        ("Deployment", S3, {}, "no way to verify s3://"),
        ("Deployment", "/elsewhere/x", {}, "no way to verify /elsewhere/x"),
        (
            "InferenceService",
            PVC,
            {"spec": {"container": {"image": "i", "env": []}}},
            "takes QUANTLIB_PUBLIC_KEY from no ConfigMap",
        ),
        ("InferenceService", PVC, {"spec": {}}, "names no image"),
    ],
)
def test_what_would_verify_nothing_is_refused(
    installed: Any, kind: str, uri: str, change: Any, reason: str
) -> None:
    given = None if change is None else installed | change
    with pytest.raises(InvalidInputError, match=reason):
        verified(service(kind), uri, DIGEST, given)


@pytest.mark.parametrize("uri", [S3, PVC])
def test_an_image_by_its_digest_is_verified_by_the_node(installed: Any, uri: str) -> None:
    document = service("InferenceService")
    before = verified(document, uri, DIGEST, installed)
    image = f"oci://registry.example.org/tiny@{DIGEST}"
    assert verified(before, image, DIGEST, None) == document
    with pytest.raises(InvalidInputError, match="has no way to verify oci://"):
        verified(document, "oci://registry.example.org/tiny:stable", DIGEST, installed)
