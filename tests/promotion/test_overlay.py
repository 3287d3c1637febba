"""What promotion by a commit makes of overlays, and which it refuses."""

import json

import pytest
import yaml
from promotion.conftest import MakePublished, Repository
from promotion.proposing import (
    BESIDE,
    OVERLAY,
    branch_of,
    built,
    merge,
    refusal,
    run,
    write,
)
from promotion.services import SERVICES

from quantlib.promotion.kinds import KINDS

IMAGE = "      image: vllm/vllm-openai:v0.32.0\n"
RUNTIME = """\
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: ours}
spec:
  supportedModelFormats: [{name: vLLM}]
  containers: [{name: kserve-container, image: "vllm/vllm-openai:VERSION"}]
"""


INFERENCE_PATCH = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: tiny}
spec: {predictor: {model: {storageUri: s3://models/ours/, args: [--swap-space, "8", -tp, "2"]}}}
"""


LLM_PATCH = """\
apiVersion: serving.kserve.io/v1alpha2
kind: LLMInferenceService
metadata: {name: tiny}
spec:
  model: {uri: s3://models/ours/}
  template:
    containers:
    - name: main
      image: vllm/vllm-openai:v0.32.0
      resources: {limits: {nvidia.com/gpu: "2"}}
      env: [{name: VLLM_ADDITIONAL_ARGS, value: --swap-space 8 -tp 2}]
"""


DEPLOYMENT_PATCH = """\
- {op: replace, path: /spec/template/spec/containers/1/args/0, value: s3://models/ours/}
- {op: replace, path: /spec/template/spec/containers/1/args/1, value: --swap-space}
- {op: replace, path: /spec/template/spec/containers/1/args/2, value: "8"}
- {op: remove, path: /spec/template/spec/containers/1/args/3}
- {op: add, path: /spec/template/spec/containers/1/args/-, value: -tp}
- {op: add, path: /spec/template/spec/containers/1/args/-, value: "2"}
- {op: add, path: /metadata/annotations, value: {example.org~1a: b}}
"""


@pytest.mark.parametrize("kind", SERVICES)
def test_what_kustomize_builds_serves_the_checkpoint(
    make_published: MakePublished, repository: Repository, kind: str
) -> None:
    write(repository, service=SERVICES[kind])
    for number, seed in enumerate(("one", "two")):
        published = make_published(seed, day=number)
        done = run(published, repository)
        assert done.exit_code == 0, done.exception
        merge(repository, branch_of(published))
    uri = f"s3://models/tiny/{published.name}/"
    kept = ["--gpu-memory-utilization", "0.9", "--max-model-len=512"]
    ours = ["--dtype", "bfloat16"]
    service = built(repository)
    spec = service["spec"]
    if kind == "InferenceService":
        assert spec["predictor"]["model"]["storageUri"] == uri
        assert spec["predictor"]["model"]["args"] == kept + ours
        assert spec["predictor"]["model"]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
        assert spec["predictor"]["minReplicas"] == 2
    elif kind == "LLMInferenceService":
        assert spec["model"] == {"uri": uri, "name": "tiny"}
        (main,) = spec["template"]["containers"]
        assert main["image"] == "vllm/vllm-openai:v0.32.0"
        assert main["env"] == [
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "VLLM_ADDITIONAL_ARGS", "value": " ".join(kept + ours)},
        ]
    else:
        containers = {each["name"]: each for each in spec["template"]["spec"]["containers"]}
        assert set(containers) == {"proxy", "vllm"}
        streamed = ["--load-format", "runai_streamer"]
        assert containers["vllm"]["args"] == [uri, *kept, *ours, *streamed]
    previous = service["metadata"]["annotations"]["quantlib.io/previous-uri"]
    assert previous.startswith("s3://models/tiny/")


def test_the_patch_is_of_the_version_that_the_service_is_written_in(
    make_published: MakePublished, repository: Repository
) -> None:
    text = SERVICES["LLMInferenceService"].replace("v1alpha2", "v1alpha1")
    write(repository, service=text)
    published = make_published()
    assert run(published, repository).exit_code == 0
    merge(repository, branch_of(published))
    service = built(repository)
    assert service["apiVersion"] == "serving.kserve.io/v1alpha1"
    assert service["spec"]["model"]["uri"] == f"s3://models/tiny/{published.name}/"


def test_a_kustomization_with_blank_lines_stays_as_it_is_written(
    make_published: MakePublished, repository: Repository
) -> None:
    text = "resources:\n- ../../base\npatches:\n\n  # More replicas.\n  - path: replicas.yaml\n"
    write(repository, kustomization=text)
    published = make_published()
    assert run(published, repository).exit_code == 0
    kustomization = repository.read(branch_of(published), f"{OVERLAY}/kustomization.yaml")
    assert kustomization == f"{text}  - path: promoted-tiny.yaml\n"


@pytest.mark.parametrize(
    ("kind", "patch", "entry"),
    [
        ("InferenceService", INFERENCE_PATCH, "- path: ours.yaml\n"),
        ("InferenceService", INFERENCE_PATCH, f"- patch: {json.dumps(INFERENCE_PATCH)}\n"),
        ("LLMInferenceService", LLM_PATCH, "- path: ours.yaml\n"),
        ("Deployment", DEPLOYMENT_PATCH, "- {path: ours.yaml, target: {kind: Deployment}}\n"),
    ],
)
def test_what_other_patches_set_is_replaced_and_kept(
    make_published: MakePublished, repository: Repository, kind: str, patch: str, entry: str
) -> None:
    kustomization = f"{BESIDE}patches:\n{entry}"
    write(repository, service=SERVICES[kind], ours=patch, kustomization=kustomization)
    before = built(repository)
    published = make_published()
    done = run(published, repository, runtime_version="0.32.0")
    assert done.exit_code == 0, done.exception
    merge(repository, branch_of(published))
    service = built(repository)
    assert KINDS[kind].state(before).uri == "s3://models/ours/"
    state = KINDS[kind].state(service)
    assert state.arguments[:4] == ("--swap-space", "8", "-tp", "2")
    assert state.uri == f"s3://models/tiny/{published.name}/"
    assert state.annotations["quantlib.io/previous-uri"] == "s3://models/ours/"
    if kind == "LLMInferenceService":
        (main,) = service["spec"]["template"]["containers"]
        assert main["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert "serves sha256:" in run(published, repository).output


def test_a_later_patch_that_has_the_last_word_is_told(
    make_published: MakePublished, repository: Repository
) -> None:
    patches = "patches:\n- path: promoted-tiny.yaml\n- path: ours.yaml\n"
    files = {"ours": INFERENCE_PATCH, "promoted-tiny": INFERENCE_PATCH}
    write(repository, **files, kustomization=BESIDE + patches)
    said = refusal(make_published(), repository)
    assert "a later patch of the overlay changes what it serves" in said


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("kustomization", "resources: [../../base\n", "is not YAML"),
        ("kustomization", "- ../../base\n", "is not what kustomize reads"),
        ("kustomization", "resources: ../../base\n", "is not what kustomize reads"),
        ("kustomization", "resources: [../../base]\n---\n{}\n", "is not what kustomize"),
        ("kustomization", "resources:\n- ../production\n", "rests on itself"),
        ("kustomization", "resources: [../../base]\n...\n", "no line can be added"),
        ("kustomization", "resources: [../../base]\npatches: [{patch: '{'}]", "understood"),
        ("service", "kind: InferenceService\nmetadata:\n", "no resources of"),
        ("service", INFERENCE_PATCH.replace("beta", "gamma"), "is not known"),
        ("service", INFERENCE_PATCH.partition("spec")[0], "is not understood"),
        ("service", SERVICES["Deployment"].replace('"0.9"', "0.9"), "understood"),
        ("base", "namespace: dev\nresources: [service.yaml]", "into dev"),
    ],
)
def test_files_that_cannot_be_read_are_told(
    make_published: MakePublished, repository: Repository, file: str, text: str, said: str
) -> None:
    write(repository, **{"kustomization": BESIDE, file: text})
    assert said in refusal(make_published(), repository)


def test_an_unknown_runtime_is_refused_until_it_is_named(
    make_published: MakePublished, repository: Repository
) -> None:
    write(repository, service=SERVICES["InferenceService"].replace(IMAGE, ""))
    published = make_published()
    said = refusal(published, repository)
    assert "--runtime-version" in said
    assert run(published, repository, runtime_version="0.32.0").exit_code == 0


@pytest.mark.parametrize("version", ["v0.32.0", "0.32.0+cpu"])
def test_a_runtime_is_named_as_tags_and_packages_are(
    make_published: MakePublished, repository: Repository, version: str
) -> None:
    assert run(make_published(), repository, runtime_version=version).exit_code == 0


@pytest.mark.parametrize(
    ("kind", "written", "instead", "said"),
    [
        ("Deployment", "args: [s3://models/by-hand/,", "args: [", "do not name the model"),
        ("Deployment", "s3://models/by-hand/,", "vllm serve s3://a,", "do not name the model"),
        ("InferenceService", "args: [", "args: [--model=org/name, ", "name a model, org/name"),
        (
            "LLMInferenceService",
            "value: --gpu-memory-utilization 0.9 --max-model-len=512",
            "valueFrom: {configMapKeyRef: {name: a, key: b}}",
            "comes from elsewhere",
        ),
    ],
)
def test_services_that_would_not_serve_the_uri_are_refused(
    make_published: MakePublished,
    repository: Repository,
    kind: str,
    written: str,
    instead: str,
    said: str,
) -> None:
    write(repository, service=SERVICES[kind].replace(written, instead))
    assert said in refusal(make_published(), repository)


def test_the_command_of_vllm_stays_before_the_model(
    make_published: MakePublished, repository: Repository
) -> None:
    text = SERVICES["Deployment"].replace("args: [", "command: [vllm]\n        args: [serve, ")
    write(repository, service=text)
    published = make_published()
    assert run(published, repository).exit_code == 0
    merge(repository, branch_of(published))
    containers = built(repository)["spec"]["template"]["spec"]["containers"]
    (vllm,) = (each for each in containers if each["name"] == "vllm")
    uri = f"s3://models/tiny/{published.name}/"
    assert vllm["args"][:4] == ["serve", uri, "--gpu-memory-utilization", "0.9"]
    assert "serves sha256:" in run(published, repository).output


@pytest.mark.parametrize(
    ("added", "known"),
    [
        ("images:\n- {name: vllm/vllm-openai, newTag: v0.31.0}\n", False),
        ("patches:\n- path: replicas.yaml\n", True),
        ("patches:\n- patch: '[{op: add, path: /spec/predictor/model/image, value: a}]'\n", False),
        ("patchesStrategicMerge:\n- image.yaml\n", False),
        ("patchesStrategicMerge:\n- '{spec: {image: " + "a" * 300 + "}}'\n", False),
    ],
)
def test_an_image_that_a_kustomization_sets_is_not_known(
    make_published: MakePublished, repository: Repository, added: str, known: bool
) -> None:
    image = "spec: {predictor: {model: {image: a}}}\n"
    write(repository, image=image, kustomization=BESIDE + added)
    done = run(make_published(), repository)
    assert (done.exit_code == 0) is known, done.exception
    if not known:
        assert "of a kustomization may set the image" in str(done.exception)
        assert "--runtime-version" in str(done.exception)


def test_the_runtime_in_the_overlay_says_its_version(
    make_published: MakePublished, repository: Repository
) -> None:
    service = SERVICES["InferenceService"].replace(IMAGE, "      runtime: ours\n")
    base = "resources:\n- service.yaml\n- ../overlays/production/runtime.yaml\n"
    published = make_published()
    for version, said in (
        ("v0.31.1", "the ServingRuntime ours runs vLLM 0.31.1, but 0.32.0 validated"),
        ("latest", "the tag of vllm/vllm-openai:latest does not say it"),
        ("v0.32.0", None),
    ):
        runtime = RUNTIME.replace("VERSION", version)
        write(repository, service=service, base=base, runtime=runtime)
        done = run(published, repository)
        assert (done.exit_code == 0) is (said is None)
        assert said is None or said in str(done.exception)


def test_pods_that_verify_another_checkpoint_are_not_promoted_to_this_one(
    make_published: MakePublished, repository: Repository
) -> None:
    published = make_published()
    document = yaml.safe_load(SERVICES["InferenceService"])
    for digest, passes in (("0" * 64, False), (published.name, True)):
        container = {"name": "quantlib-verify", "args": ["verify", f"--digest=sha256:{digest}"]}
        document["spec"]["predictor"]["initContainers"] = [container]
        write(repository, service=yaml.safe_dump(document))
        if passes:
            assert run(published, repository).exit_code == 0
        else:
            asked = f"give it --digest=sha256:{published.name} in the same change"
            assert asked in refusal(published, repository)
