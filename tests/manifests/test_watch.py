"""The components that watch for releases, each added to each overlay."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubeflow_api import recorded_server
from manifests.conftest import MANIFESTS, Applied, Document, build_with, find, of_kubernetes
from network_policies import Address, Pod, allows
from pod_security import restricted_problems
from published_runs import publish_as
from recipes import QUICK

from components._images import is_floating, named_images, read_lock
from pipelines.commands.watch import watch
from pipelines.kubeflow.client import HOST_VARIABLE, TOKEN_FILE
from quantlib.checks.recipe import asked_from_text, load_recipe
from quantlib.runtime.log import LOG_VARIABLE
from quantlib.store import open_store
from quantlib.watching.jobs import resolve_release
from quantlib.watching.looks import recipe_names

COMPONENTS = MANIFESTS / "components"
KUBEFLOW, ARGO = COMPONENTS / "watch-kubeflow", COMPONENTS / "watch-argo"


@pytest.fixture
def kubeflow(overlay: str, tmp_path: Path) -> list[Document]:
    return build_with(overlay, KUBEFLOW, tmp_path.resolve())


def pod_of(cron_job: Document) -> Document:
    return cron_job["spec"]["jobTemplate"]["spec"]["template"]


def test_the_cron_job_fits_the_schema_of_a_recent_kubernetes(kubeflow: list[Document]) -> None:
    version = kubernetes_validate.latest_version()
    for document in of_kubernetes(kubeflow):
        kubernetes_validate.validate(document, version, strict=True)


def test_one_look_at_a_time_and_none_to_catch_up(kubeflow: list[Document]) -> None:
    spec = find(kubeflow, "CronJob", "quantlib-watch")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] == 600
    assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0


def test_its_pod_is_restricted_and_may_only_start_runs(kubeflow: list[Document]) -> None:
    template = pod_of(find(kubeflow, "CronJob", "quantlib-watch"))
    spec = template["spec"]
    assert restricted_problems(spec) == []
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["resources"]["limits"]["memory"]
    assert container["image"] == "quantlib-watch:0.2.0" == named_images().watch
    assert spec["serviceAccountName"] == "quantlib-watch"
    assert spec["automountServiceAccountToken"] is False
    (token,) = [volume["projected"] for volume in spec["volumes"] if "projected" in volume]
    (source,) = token["sources"]
    assert source["serviceAccountToken"]["audience"] == "pipelines.kubeflow.org"
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "token"]
    assert Path(mount["mountPath"]) / source["serviceAccountToken"]["path"] == TOKEN_FILE
    # No secret stands in it: they are taken by reference, where there are any.
    secrets = [each["secretRef"] for each in container["envFrom"] if "secretRef" in each]
    assert {each["name"]: each["optional"] for each in secrets} == {
        "quantlib-s3": True,
        "quantlib-hub": True,
    }
    policies = [each for each in kubeflow if each["kind"] == "NetworkPolicy"]
    pod = Pod("quantlib", template["metadata"]["labels"])
    assert allows(policies, pod, Address("8.8.8.8"), 443)
    assert allows(policies, pod, Pod("kubeflow", {"app": "ml-pipeline"}), 8888)
    assert not allows(policies, pod, Address("172.18.0.2"), 6443), "it calls no Kubernetes API"


def test_its_command_is_one_that_there_is(kubeflow: list[Document]) -> None:
    settings = find(kubeflow, "ConfigMap", "quantlib-watch")["data"]
    assert settings.keys() == {"STORE", "PUBLISH_TO", HOST_VARIABLE, LOG_VARIABLE}
    spec = pod_of(find(kubeflow, "CronJob", "quantlib-watch"))["spec"]
    (container,) = spec["containers"]
    assert container["command"] == ["python", "-m", "quantlib", "watch"]
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda match: settings[match[1]], text) for text in container["args"]
    ]
    given = watch.make_context("watch", arguments, resilient_parsing=True).params
    assert given["once"] is True
    assert given["runner"] == "kubeflow"
    assert (given["store"], given["publish_to"]) == (settings["STORE"], settings["PUBLISH_TO"])
    mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = [each for each in spec["volumes"] if "configMap" in each]
    maps = {each["name"]: each["configMap"]["name"] for each in volumes}
    (recipes,), lock = given["recipes"], given["images_lock"]
    assert lock.name in find(kubeflow, "ConfigMap", maps[mounted[str(lock.parent)]])["data"]
    texts = find(kubeflow, "ConfigMap", maps[mounted[recipes]])["data"].values()
    assert all(asked_from_text(text).model for text in texts)


@pytest.mark.slow
def test_its_pod_starts_a_run_for_a_release(
    kubeflow: list[Document], tiny_llama: Path, s3_address: str, tmp_path: Path
) -> None:
    """The container's command as a process, with a real bucket and recorded answers."""
    source = open_store(f"{s3_address}/model")
    for file in tiny_llama.iterdir():
        source.import_file(file, file.name)
    for name in ("recipes", "images"):
        (tmp_path / name).mkdir()
    recipe = QUICK | {"model": source.address}
    (tmp_path / "recipes" / "tiny.yaml").write_text(json.dumps(recipe))
    lock = find(kubeflow, "ConfigMap", "quantlib-watch-images")["data"]["images.lock.json"]
    (tmp_path / "images" / "images.lock.json").write_text(lock)
    (container,) = pod_of(find(kubeflow, "CronJob", "quantlib-watch"))["spec"]["containers"]
    published = f"{s3_address}/models"
    settings = {"STORE": f"{s3_address}/store", "PUBLISH_TO": published}
    text = json.dumps([*container["command"], *container["args"]])
    for name, value in settings.items():
        text = text.replace(f"$({name})", value)
    _, *arguments = json.loads(text.replace("/etc/quantlib", str(tmp_path)))
    with recorded_server(multi_user=True) as server:
        environment = os.environ | {HOST_VARIABLE: server.host}

        def look() -> str:
            done = subprocess.run(
                [sys.executable, *arguments], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout.splitlines()[-1].partition("tiny.yaml: ")[2]

        release = resolve_release(source.address).address
        assert look() == f"started: {release}"
        (body,) = server.sent("/runs")
        given = body["runtime_config"]["parameters"]
        assert given["model"] == release
        assert given["publish_to"] == published
        pipeline = body["pipeline_spec"]["pipeline_spec"]
        publish = pipeline["root"]["dag"]["tasks"]["publish"]["inputs"]["parameters"]
        job = publish["job"]["runtimeValue"]["constant"]
        executors = pipeline["deploymentSpec"]["executors"]
        images = {executor["container"]["image"] for executor in executors.values()}
        assert images == set(named_images().of_quantization)

        server.runs = [{"run_id": "r1", "state": "RUNNING", "namespace": "quantlib"}]
        assert look() == f"started: {release}"
        assert server.sent("/runs") == [body], "it is not started twice"

        address = publish_as(published, job)
        asked = len(server.requests)
        assert look() == f"up to date: {address}"
        assert len(server.requests) == asked


def test_the_examples_can_be_used_as_they_are() -> None:
    recipes = recipe_names([str(KUBEFLOW / "recipes"), str(ARGO / "recipe.yaml")])
    assert all(load_recipe(recipe).model for recipe in recipes)
    images = read_lock(KUBEFLOW / "images.lock.json")
    assert images == named_images()
    assert not is_floating(images.watch)


@pytest.mark.slow
def test_an_api_server_takes_both(applied: Applied, overlay: str, tmp_path: Path) -> None:
    applied.server.accept("argoproj.io", "v1alpha1", "CronWorkflow")
    for component in (KUBEFLOW, ARGO):
        folder = tmp_path.resolve() / component.name
        folder.mkdir()
        for document in build_with(overlay, component, folder):
            labels = document["metadata"].get("labels", {})
            if labels.get("app.kubernetes.io/name") != "quantlib-watch":
                continue
            if document["kind"] == "CronJob":
                # The test's server is older than batch/v1's; the fields are the same.
                document["apiVersion"] = "batch/v1beta1"
            applied.server.kubectl("apply", "-f-", document=document)
    get = ["-n", "quantlib", "get", "cronjob", "quantlib-watch", "-ojson"]
    stored = pod_of(json.loads(applied.server.kubectl(*get).stdout))["spec"]["containers"][0]
    manifest = yaml.safe_load((KUBEFLOW / "cron-job.yaml").read_text())
    (container,) = pod_of(manifest)["spec"]["containers"]
    assert stored == stored | container | {"image": "quantlib-watch:0.2.0"}
