"""Images that cannot move, profiles of clusters, and objects for Kubernetes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipelines.quantize  # noqa: F401 - components take the images' names when they are imported
from components import _images
from pipelines.cluster import Cluster, load_cluster
from pipelines.compiling import CompileOptions, compile_to, write_kubernetes_manifests
from pipelines.ir import Container
from pipelines.placeholders import Placeholder
from pipelines.platform_spec import SecretVolume
from pipelines.reader import read_pipeline
from quantlib.checks.recipe import load_recipe
from quantlib.errors import InvalidInputError
from quantlib.runtime.code_version import code_version

DIGEST = f"sha256:{'a' * 64}"


def images_in(file: Path) -> set[str]:
    document = next(yaml.safe_load_all(file.read_text()))
    executors = document["deploymentSpec"]["executors"].values()
    return {executor["container"]["image"] for executor in executors}


def test_floating_tags_are_refused_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_images, "QUANTLIB_IMAGE", "quantlib:latest")
    monkeypatch.setattr(_images, "VALIDATE_IMAGE", "quantlib-validate")
    file = tmp_path / "p.yaml"
    with pytest.raises(InvalidInputError) as caught:
        compile_to(file, CompileOptions())
    assert [problem.where for problem in caught.value.problems] == [
        "image quantlib:latest",
        "image quantlib-validate",
    ]
    assert not file.exists()
    compile_to(file, CompileOptions(allow_floating=True))
    assert images_in(file) == {"quantlib:latest", "quantlib-validate"}


def test_images_are_pinned_by_a_lock_file(tmp_path: Path) -> None:
    lock = tmp_path / "lock.json"
    pinned = {name: f"r.example/{name}@{DIGEST}" for name in ("quantlib", "validate", "watch")}
    lock.write_text(json.dumps(pinned))
    file = tmp_path / "p.yaml"
    compile_to(file, CompileOptions(images_lock=lock), "watch")
    assert images_in(file) == set(pinned.values())
    compile_to(file, CompileOptions(images_lock=lock))
    assert images_in(file) == set(pinned.values()) - {pinned["watch"]}


@pytest.mark.parametrize(
    ("profile", "where"),
    [
        ({"gpus": 1}, "gpus"),
        ({"scratch": {"size": "many"}}, "scratch.size"),
        ({"parallel": 65}, "parallel"),
        ({"steps": {"train": {}}}, "steps.train"),
        ({"steps": {"fetch": {"memory": "8 GB"}}}, "steps.fetch.memory"),
        ({"steps": {"merge": {"cpu": None}}}, "steps.merge.cpu"),
    ],
)
def test_faults_of_a_profile_are_named(tmp_path: Path, profile: Any, where: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(profile))
    with pytest.raises(InvalidInputError) as caught:
        load_cluster(str(file))
    assert caught.value.problems[0].where.startswith(f"{file}: {where}")


def test_profiles_that_ship() -> None:
    assert load_cluster("gpu").accelerator is not None
    assert load_cluster("local").accelerator is None
    assert Cluster().step("gate").memory == "1Gi"
    assert load_cluster("local").step("gate").memory == "512Mi"


def test_volumes_and_nodes_of_a_profile(tmp_path: Path) -> None:
    profile = {
        "scratch": {"size": "9Gi", "storage_class": "fast"},
        "accelerator": {
            "type": "amd.com/gpu",
            "node_selector": {"pool": "a"},
            "affinity": [{"key": "zone", "values": ["z"]}],
        },
        "steps": {"quantize": {"gpus": 2, "cpu": "3"}},
    }
    profile_file, file = tmp_path / "cluster.yaml", tmp_path / "p.yaml"
    profile_file.write_text(yaml.safe_dump(profile))
    compile_to(file, CompileOptions(str(profile_file)))
    container: Any = read_pipeline(file.read_text()).components["comp-quantize"].implementation
    (volume,) = container.kubernetes.ephemeral_volumes
    assert (volume.path, volume.size, volume.storage_class) == ("/scratch", "9Gi", "fast")
    assert container.resources.accelerator_type == ("amd.com/gpu",)
    assert container.resources.accelerator_count == ("2",)
    assert container.resources.cpu_limit == ("3",)
    (memory,) = container.resources.memory_limit  # what a profile leaves out stays as it is
    assert isinstance(memory, Placeholder)
    assert container.kubernetes.node_selector == {"pool": "a"}
    assert container.kubernetes.affinity[0].values == ("z",)


def test_kubernetes_objects_hold_the_compiled_pipeline(tmp_path: Path) -> None:
    file, objects_file = tmp_path / "p.yaml", tmp_path / "objects.yaml"
    compile_to(file, CompileOptions())
    write_kubernetes_manifests(file, objects_file, "team")
    pipeline, version = yaml.safe_load_all(objects_file.read_text())
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert {o["apiVersion"] for o in (pipeline, version)} == {"pipelines.kubeflow.org/v2beta1"}
    assert {o["metadata"]["namespace"] for o in (pipeline, version)} == {"team"}
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "quantize"
    assert version["metadata"]["name"] == f"quantize-{code_version().replace('+', '-')}"
    assert pipeline["spec"]["description"].startswith("Quantizes a model for vLLM")
    both = yaml.safe_dump_all([version["spec"]["pipelineSpec"], version["spec"]["platformSpec"]])
    assert read_pipeline(both).name == "quantize"


def test_pods_of_a_recipe_carry_its_digest(tmp_path: Path) -> None:
    recipe, file = load_recipe("awq"), tmp_path / "p.yaml"
    compile_to(file, CompileOptions(recipe=recipe))
    container: Any = read_pipeline(file.read_text()).components["comp-quantize"].implementation
    label = container.kubernetes.labels["quantlib.io/recipe"]
    assert recipe.digest() == f"sha256:{label}{recipe.digest()[19:]}"
    assert len(label) == 12
    compile_to(file, CompileOptions())
    assert "quantlib.io/recipe" not in file.read_text()


def test_publish_alone_gets_the_key_that_signs(tmp_path: Path) -> None:
    profile, file = tmp_path / "cluster.yaml", tmp_path / "p.yaml"
    profile.write_text("signing_secret: release-key\n")
    compile_to(file, CompileOptions(str(profile)))
    components = read_pipeline(file.read_text()).components
    for name, component in components.items():
        container: Any = component.implementation
        if not isinstance(container, Container):
            continue
        config = container.kubernetes
        variables = {variable for source in config.secrets for variable in source.keys}
        if name == "comp-publish":
            assert config.secret_volumes == (SecretVolume("release-key", "/signing", False),)
            assert container.environment["QUANTLIB_SIGNING_KEY"] == "/signing/key.pem"
            assert "QUANTLIB_SIGNING_PASSWORD" in variables
        else:
            assert config.secret_volumes == ()
            assert "QUANTLIB_SIGNING_PASSWORD" not in variables
