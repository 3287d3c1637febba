"""Promotion by a commit, in a real repository with a bare remote."""

import json
import subprocess
from pathlib import Path
from shutil import which
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from promotion.conftest import MakePublished, Repository
from promotion.services import SERVICES

from quantlib.cli.promote import promote
from quantlib.errors import InvalidInputError, QuantlibError, VerificationError
from quantlib.promotion.git import Clone, without_password
from quantlib.promotion.kinds import KINDS

OVERLAY = "overlays/production"
PATCH = f"{OVERLAY}/promoted-tiny.yaml"
RUNTIME = """\
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: ours}
spec:
  supportedModelFormats: [{name: vLLM}]
  containers: [{name: kserve-container, image: "vllm/vllm-openai:VERSION"}]
"""


def run(published: Path, repository: Repository, *further: str, **replaced: str) -> Result:
    options = {
        "--service": "tiny",
        "--namespace": "serving",
        "--repo": str(repository.remote),
        "--overlay": OVERLAY,
        "--storage-uri": f"s3://models/tiny/{published.name}",
    } | {f"--{name.replace('_', '-')}": value for name, value in replaced.items()}
    words = [word for option in options.items() for word in option]
    return CliRunner().invoke(promote, [str(published), *words, *further])


def branch_of(published: Path) -> str:
    return f"promote/tiny-{published.name[:12]}"


def merge(repository: Repository, branch: str) -> None:
    repository.git("fetch", "--quiet", "origin")
    repository.git("merge", "--quiet", "--no-edit", "--no-ff", f"origin/{branch}")
    repository.git("push", "--quiet", "origin", "HEAD:main")


def built(repository: Repository) -> dict[str, Any]:
    """The service as kustomize builds it."""
    if not which("kubectl"):
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(repository.copy / OVERLAY)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_a_branch_holds_the_change_and_the_gates_table(
    make_published: MakePublished, repository: Repository
) -> None:
    published = make_published()
    before = repository.git("rev-parse", "origin/main")
    done = run(published, repository)
    assert done.exit_code == 0, done.exception
    branch = branch_of(published)
    assert sorted(repository.branches()) == ["main", branch]
    repository.git("fetch", "--quiet", "origin")
    assert repository.git("rev-parse", "origin/main") == before
    message = repository.git("log", "-1", "--format=%B", f"origin/{branch}")
    assert message.startswith(f"Serve Tiny-Llama-6 {published.name[:12]} as tiny\n")
    assert "kl_mean                    0.1080     0.2000" in message
    assert f"Digest: sha256:{published.name}" in message
    changed = repository.git("diff", "--name-only", "origin/main", f"origin/{branch}")
    assert changed.split() == [f"{OVERLAY}/kustomization.yaml", PATCH]
    patch = yaml.safe_load(repository.read(branch, PATCH))
    model = patch["spec"]["predictor"]["model"]
    assert model["storageUri"] == f"s3://models/tiny/{published.name}/"
    annotations = patch["metadata"]["annotations"]
    assert annotations["quantlib.io/digest"] == f"sha256:{published.name}"
    assert annotations["quantlib.io/previous-uri"] == "s3://models/by-hand/"
    provenance = json.loads((published / "provenance.json").read_text())
    receipt = provenance["predicate"]["runDetails"]["byproducts"][-1]
    assert receipt["annotations"]["step"] == "validate"
    assert receipt["uri"] == annotations["quantlib.io/run"]
    assert "quantlib.io/promoted-at" not in annotations
    kustomization = repository.read(branch, f"{OVERLAY}/kustomization.yaml")
    assert "# More replicas.\n- path: replicas.yaml\n- path: promoted-tiny.yaml\nlabels" in (
        kustomization
    )


@pytest.mark.parametrize("kind", SERVICES)
def test_what_kustomize_builds_serves_the_checkpoint(
    make_published: MakePublished, repository: Repository, kind: str
) -> None:
    (repository.copy / "base/service.yaml").write_text(SERVICES[kind])
    kustomization = repository.copy / OVERLAY / "kustomization.yaml"
    kustomization.write_text("namespace: serving\nresources:\n- ../../base\n")
    repository.commit()
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
    (repository.copy / "base/service.yaml").write_text(text)
    kustomization = repository.copy / OVERLAY / "kustomization.yaml"
    kustomization.write_text("namespace: serving\nresources:\n- ../../base\n")
    repository.commit()
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
    (repository.copy / OVERLAY / "kustomization.yaml").write_text(text)
    repository.commit()
    published = make_published()
    assert run(published, repository).exit_code == 0
    kustomization = repository.read(branch_of(published), f"{OVERLAY}/kustomization.yaml")
    assert kustomization == f"{text}  - path: promoted-tiny.yaml\n"


def test_the_same_again_has_nothing_to_do(
    make_published: MakePublished, repository: Repository
) -> None:
    published = make_published()
    branch = branch_of(published)
    assert run(published, repository).exit_code == 0
    tip = repository.git("ls-remote", "origin", branch)
    again = run(published, repository)
    assert again.exit_code == 0
    assert f"the branch {branch} proposes" in again.output
    assert repository.git("ls-remote", "origin", branch) == tip
    merge(repository, branch)
    again = run(published, repository)
    assert again.exit_code == 0
    assert "serves sha256:" in again.output


def test_git_revert_undoes_it(make_published: MakePublished, repository: Repository) -> None:
    before = built(repository)
    published = make_published()
    assert run(published, repository).exit_code == 0
    merge(repository, branch_of(published))
    assert built(repository) != before
    repository.git("revert", "--no-edit", "--mainline", "1", "HEAD")
    assert built(repository) == before
    assert not (repository.copy / PATCH).exists()


def test_what_was_reverted_is_proposed_again(
    make_published: MakePublished, repository: Repository
) -> None:
    published = make_published()
    branch = branch_of(published)
    assert run(published, repository).exit_code == 0
    merge(repository, branch)
    repository.git("revert", "--no-edit", "--mainline", "1", "HEAD")
    repository.git("push", "--quiet", "origin", "HEAD:main")
    assert "pushed" in run(published, repository).output
    assert "proposes" in run(published, repository).output
    merge(repository, branch)
    assert "serves sha256:" in run(published, repository).output
    uri = f"s3://models/tiny/{published.name}/"
    assert built(repository)["spec"]["predictor"]["model"]["storageUri"] == uri


def test_another_address_replaces_what_the_branch_proposed(
    make_published: MakePublished, repository: Repository
) -> None:
    published = make_published()
    assert run(published, repository).exit_code == 0
    uri = f"pvc://models/{published.name}/"
    assert "pushed" in run(published, repository, storage_uri=uri).output
    patch = yaml.safe_load(repository.read(branch_of(published), PATCH))
    assert patch["spec"]["predictor"]["model"]["storageUri"] == uri
    previous = patch["metadata"]["annotations"]["quantlib.io/previous-uri"]
    assert previous == "s3://models/by-hand/", "what the branch proposed never served"


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
    folder = repository.copy / OVERLAY
    (repository.copy / "base/service.yaml").write_text(SERVICES[kind])
    (folder / "ours.yaml").write_text(patch)
    (folder / "kustomization.yaml").write_text("resources:\n- ../../base\npatches:\n" + entry)
    repository.commit()
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
    folder = repository.copy / OVERLAY
    (folder / "ours.yaml").write_text(INFERENCE_PATCH)
    (folder / "promoted-tiny.yaml").write_text(INFERENCE_PATCH)
    (folder / "kustomization.yaml").write_text(
        "resources:\n- ../../base\npatches:\n- path: promoted-tiny.yaml\n- path: ours.yaml\n"
    )
    repository.commit()
    refused = run(make_published(), repository)
    assert isinstance(refused.exception, InvalidInputError)
    assert "a later patch of the overlay changes what it serves" in str(refused.exception)
    assert repository.branches() == ["main"]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("kustomization.yaml", "resources: [../../base\n", "is not YAML"),
        ("kustomization.yaml", "- ../../base\n", "is not what kustomize reads"),
        ("kustomization.yaml", "resources: ../../base\n", "is not what kustomize reads"),
        ("kustomization.yaml", "resources: [../../base]\n---\n{}\n", "is not what kustomize"),
        ("kustomization.yaml", "resources:\n- ../production\n", "rests on itself"),
        ("kustomization.yaml", "resources: [../../base]\n...\n", "no line can be added"),
        ("kustomization.yaml", "resources: [../../base]\npatches: [{patch: '{'}]", "understood"),
        ("../../base/service.yaml", "kind: InferenceService\nmetadata:\n", "no resources of"),
        ("../../base/service.yaml", INFERENCE_PATCH.replace("beta", "gamma"), "is not known"),
        ("../../base/service.yaml", INFERENCE_PATCH.partition("spec")[0], "is not understood"),
        ("../../base/service.yaml", SERVICES["Deployment"].replace('"0.9"', "0.9"), "understood"),
        ("../../base/kustomization.yaml", "namespace: dev\nresources: [service.yaml]", "into dev"),
    ],
)
def test_files_that_cannot_be_read_are_told(
    make_published: MakePublished, repository: Repository, file: str, text: str, said: str
) -> None:
    folder = repository.copy / OVERLAY
    (folder / "kustomization.yaml").write_text("resources:\n- ../../base\n")
    (folder / file).write_text(text)
    repository.commit()
    refused = run(make_published(), repository)
    assert isinstance(refused.exception, InvalidInputError), refused.exception
    assert said in str(refused.exception)
    assert repository.branches() == ["main"]


def test_refusals_come_all_at_once(make_published: MakePublished, repository: Repository) -> None:
    newer, older = make_published("new", day=2), make_published("old", day=1)
    assert run(newer, repository).exit_code == 0
    merge(repository, branch_of(newer))
    service = repository.copy / "base/service.yaml"
    service.write_text(service.read_text().replace("v0.32.0", "v0.31.1"))
    repository.commit()
    refused = run(older, repository)
    assert isinstance(refused.exception, InvalidInputError)
    drift, downgrade = map(str, refused.exception.problems)
    assert "the InferenceService runs vLLM 0.31.1, but 0.32.0 validated" in drift
    assert f"before what serves now ({newer.name[:12]}" in downgrade
    assert branch_of(older) not in repository.branches()
    allowed = run(older, repository, "--allow-downgrade", "--allow-runtime-drift")
    assert allowed.exit_code == 0
    assert branch_of(older) in repository.branches()


def touch(published: Path) -> None:
    """What somebody who may write the bucket can do to what is signed: make the file newer."""
    manifest = published / "manifest.json"
    manifest.write_bytes(manifest.read_bytes())


def test_a_downgrade_is_told_by_what_is_signed(
    make_published: MakePublished, repository: Repository
) -> None:
    newer, older = make_published("new", day=2), make_published("old", day=1)
    assert run(newer, repository).exit_code == 0
    merge(repository, branch_of(newer))
    touch(older)
    refused = run(older, repository)
    assert isinstance(refused.exception, InvalidInputError)
    assert "is release 2, published 2026-11-02 00:00 UTC, before what serves now" in str(
        refused.exception
    )


def test_a_lower_release_is_a_downgrade_whatever_its_time(
    make_published: MakePublished, repository: Repository
) -> None:
    first, second = make_published("one", day=3), make_published("two", day=3)
    assert run(second, repository).exit_code == 0
    merge(repository, branch_of(second))
    refused = run(first, repository)
    assert isinstance(refused.exception, InvalidInputError)
    assert "is release 1" in str(refused.exception)
    assert "release 2" in str(refused.exception)
    assert run(first, repository, "--allow-downgrade").exit_code == 0


def test_a_service_is_for_one_model(make_published: MakePublished, repository: Repository) -> None:
    first, second = make_published("one"), make_published("two", day=1)
    refused = run(first, repository, "--model", "Llama-3.1-8B")
    assert isinstance(refused.exception, InvalidInputError)
    assert "is of the model Tiny-Llama-6, but the service is for Llama-3.1-8B" in str(
        refused.exception
    )
    assert run(first, repository, "--model", "Tiny-Llama-6").exit_code == 0
    merge(repository, branch_of(first))
    assert built(repository)["metadata"]["annotations"]["quantlib.io/model"] == "Tiny-Llama-6"
    assert built(repository)["metadata"]["annotations"]["quantlib.io/release"] == "1"
    service = repository.copy / "base/service.yaml"
    named = service.read_text().replace(
        "  name: tiny\n", "  name: tiny\n  annotations: {quantlib.io/model: Other}\n", 1
    )
    service.write_text(named)
    kustomization = repository.copy / OVERLAY / "kustomization.yaml"
    kustomization.write_text("namespace: serving\nresources:\n- ../../base\n")
    repository.commit()
    refused = run(second, repository)
    assert isinstance(refused.exception, InvalidInputError)
    assert "but the service is for Other; --allow-other-model" in str(refused.exception)
    assert run(second, repository, "--allow-other-model").exit_code == 0


def test_an_unknown_runtime_is_refused_until_it_is_named(
    make_published: MakePublished, repository: Repository
) -> None:
    service = repository.copy / "base/service.yaml"
    service.write_text(service.read_text().replace("      image: vllm/vllm-openai:v0.32.0\n", ""))
    repository.commit()
    published = make_published()
    refused = run(published, repository)
    assert isinstance(refused.exception, InvalidInputError)
    assert "--runtime-version" in str(refused.exception)
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
    text = SERVICES[kind].replace(written, instead)
    (repository.copy / "base/service.yaml").write_text(text)
    (repository.copy / OVERLAY / "kustomization.yaml").write_text("resources:\n- ../../base\n")
    repository.commit()
    refused = run(make_published(), repository)
    assert isinstance(refused.exception, InvalidInputError)
    assert said in str(refused.exception)


def test_the_command_of_vllm_stays_before_the_model(
    make_published: MakePublished, repository: Repository
) -> None:
    text = SERVICES["Deployment"].replace("args: [", "command: [vllm]\n        args: [serve, ")
    (repository.copy / "base/service.yaml").write_text(text)
    (repository.copy / OVERLAY / "kustomization.yaml").write_text("resources:\n- ../../base\n")
    repository.commit()
    published = make_published()
    assert run(published, repository).exit_code == 0
    merge(repository, branch_of(published))
    containers = built(repository)["spec"]["template"]["spec"]["containers"]
    (vllm,) = (each for each in containers if each["name"] == "vllm")
    uri = f"s3://models/tiny/{published.name}/"
    assert vllm["args"][:4] == ["serve", uri, "--gpu-memory-utilization", "0.9"]
    assert "serves sha256:" in run(published, repository).output


def test_no_password_of_a_url_is_printed(
    make_published: MakePublished, repository: Repository
) -> None:
    refused = run(make_published(), repository, repo="https://ci:secret@127.0.0.1:1/x.git")
    assert "--repo https://127.0.0.1:1/x.git: cannot be cloned" in str(refused.exception)
    assert "secret" not in str(refused.exception)
    assert without_password("a https://ci:s@b@h.org/x s3://b/p") == "a https://h.org/x s3://b/p"


@pytest.mark.parametrize("option", ["--no-smoke-test", "--canary=10", "--url=http://127.0.0.1"])
def test_options_for_clusters_mean_nothing_to_a_repository(
    make_published: MakePublished, repository: Repository, option: str
) -> None:
    refused = run(make_published(), repository, option)
    assert isinstance(refused.exception, InvalidInputError)
    assert "works with --direct only" in str(refused.exception)


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
    folder = repository.copy / OVERLAY
    (folder / "image.yaml").write_text("spec: {predictor: {model: {image: a}}}\n")
    (folder / "kustomization.yaml").write_text("resources:\n- ../../base\n" + added)
    repository.commit()
    done = run(make_published(), repository)
    assert (done.exit_code == 0) is known, done.exception
    if not known:
        assert "of a kustomization may set the image" in str(done.exception)
        assert "--runtime-version" in str(done.exception)


def test_the_runtime_in_the_overlay_says_its_version(
    make_published: MakePublished, repository: Repository
) -> None:
    service = repository.copy / "base/service.yaml"
    image = "      image: vllm/vllm-openai:v0.32.0\n"
    service.write_text(service.read_text().replace(image, "      runtime: ours\n"))
    (repository.copy / "base/kustomization.yaml").write_text(
        "resources:\n- service.yaml\n- runtime.yaml\n"
    )
    runtime = repository.copy / "base/runtime.yaml"
    published = make_published()
    for version, said in (
        ("v0.31.1", "the ServingRuntime ours runs vLLM 0.31.1, but 0.32.0 validated"),
        ("latest", "the tag of vllm/vllm-openai:latest does not say it"),
        ("v0.32.0", None),
    ):
        runtime.write_text(RUNTIME.replace("VERSION", version))
        repository.commit()
        done = run(published, repository)
        assert (done.exit_code == 0) is (said is None)
        assert said is None or said in str(done.exception)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("service", "absent", "no resources of overlays/production"),
        ("namespace", "elsewhere", "puts tiny into serving"),
        ("overlay", "overlays/nowhere", "holds no kustomization.yaml"),
        ("overlay", "../..", "is outside of the repository"),
        ("storage_uri", "s3://models/tiny/other", "does not end in the checkpoint's digest"),
        ("storage_uri", "/models/DIGEST", "is no URI that KServe reads"),
        ("repo", "/nowhere/at/all", "cannot be cloned"),
        ("base", "nowhere", "cannot be cloned"),
    ],
)
def test_what_is_asked_for_must_be_there(
    make_published: MakePublished, repository: Repository, option: str, value: str, said: str
) -> None:
    published = make_published()
    refused = run(published, repository, **{option: value.replace("DIGEST", published.name)})
    assert isinstance(refused.exception, InvalidInputError)
    assert said in str(refused.exception)
    assert repository.branches() == ["main"]


def test_a_damaged_checkpoint_is_refused(
    make_published: MakePublished, repository: Repository
) -> None:
    published = make_published()
    weights = published / "weights.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"two")
    refused = run(published, repository)
    assert isinstance(refused.exception, VerificationError)
    assert "weights.safetensors" in str(refused.exception)


def test_a_push_in_between_is_reported_and_kept(
    make_published: MakePublished, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = make_published()
    branch = branch_of(published)
    push = Clone.push

    def second(clone: Clone, name: str) -> None:
        repository.git("commit", "--quiet", "--allow-empty", "--message", "Somebody else's")
        repository.git("push", "--quiet", "origin", f"HEAD:refs/heads/{name}")
        push(clone, name)

    monkeypatch.setattr(Clone, "push", second)
    refused = run(published, repository)
    assert isinstance(refused.exception, QuantlibError)
    assert f"the branch {branch} was pushed to by somebody else" in str(refused.exception)
    assert "(Test <test@example.org>)" in str(refused.exception)
    repository.git("fetch", "--quiet", "origin")
    assert "Somebody else's" in repository.git("log", "-1", "--format=%s", f"origin/{branch}")


def test_a_working_copy_stands_for_its_remote(
    make_published: MakePublished, repository: Repository
) -> None:
    published = make_published()
    status = repository.git("status", "--porcelain", "--branch")
    assert run(published, repository, repo=str(repository.copy)).exit_code == 0
    assert branch_of(published) in repository.branches()
    assert repository.git("status", "--porcelain", "--branch") == status


@pytest.mark.parametrize("same", [True, False])
def test_what_the_cluster_serves_besides_is_said(
    make_published: MakePublished,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    same: bool,
) -> None:
    live = yaml.safe_load(SERVICES["InferenceService"])
    if not same:
        live["spec"]["predictor"]["model"]["storageUri"] = "s3://models/changed/"
    asked = []

    def find(*names: str | None) -> SimpleNamespace:
        asked.append(names)
        return SimpleNamespace(kind=KINDS["InferenceService"], get=lambda: live)

    monkeypatch.setattr("quantlib.promotion.cluster.find_service", find)
    done = run(make_published(), repository, "--compare-with-cluster")
    assert done.exit_code == 0, done.exception
    assert asked == [("serving", "tiny", None)]
    first, *rest = done.output.splitlines()
    assert first.startswith("pushed promote/tiny-")
    assert [line.partition(":")[0] for line in rest] == ([] if same else ["note"])
    assert same or "the cluster serves s3://models/changed/" in rest[0]


def test_pods_that_verify_another_checkpoint_are_not_promoted_to_this_one(
    make_published: MakePublished, repository: Repository
) -> None:
    published = make_published()
    path = repository.copy / "base" / "service.yaml"
    document = yaml.safe_load(path.read_text())
    container = {"name": "quantlib-verify", "args": ["verify", f"--digest=sha256:{'0' * 64}"]}
    document["spec"]["predictor"]["initContainers"] = [container]
    path.write_text(yaml.safe_dump(document))
    repository.commit()
    done = run(published, repository)
    assert isinstance(done.exception, InvalidInputError)
    assert f"give it --digest=sha256:{published.name} in the same change" in str(done.exception)
    container["args"][1] = f"--digest=sha256:{published.name}"
    path.write_text(yaml.safe_dump(document))
    repository.commit()
    assert run(published, repository).exit_code == 0
