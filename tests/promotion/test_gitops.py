"""Promotion by a commit, in a real repository with a bare remote."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from promotion.conftest import MakePublished, Repository
from promotion.proposing import (
    OVERLAY,
    PATCH,
    branch_of,
    built,
    merge,
    refusal,
    run,
    write,
)
from promotion.services import SERVICES

from quantlib.errors import InvalidInputError, QuantlibError, VerificationError
from quantlib.promotion.git import Clone, without_password
from quantlib.promotion.kinds import KINDS


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
    said = refusal(older, repository)
    assert "is release 2, published 2026-11-02 00:00 UTC, before what serves now" in said


def test_a_lower_release_is_a_downgrade_whatever_its_time(
    make_published: MakePublished, repository: Repository
) -> None:
    first, second = make_published("one", day=3), make_published("two", day=3)
    assert run(second, repository).exit_code == 0
    merge(repository, branch_of(second))
    said = refusal(first, repository)
    assert "is release 1" in said
    assert "release 2" in said
    assert run(first, repository, "--allow-downgrade").exit_code == 0


def test_a_service_is_for_one_model(make_published: MakePublished, repository: Repository) -> None:
    first, second = make_published("one"), make_published("two", day=1)
    said = refusal(first, repository, "--model", "Llama-3.1-8B")
    assert "is of the model Tiny-Llama-6, but the service is for Llama-3.1-8B" in said
    assert run(first, repository, "--model", "Tiny-Llama-6").exit_code == 0
    merge(repository, branch_of(first))
    assert built(repository)["metadata"]["annotations"]["quantlib.io/model"] == "Tiny-Llama-6"
    assert built(repository)["metadata"]["annotations"]["quantlib.io/release"] == "1"
    annotated = "  name: tiny\n  annotations: {quantlib.io/model: Other}\n"
    service = SERVICES["InferenceService"].replace("  name: tiny\n", annotated, 1)
    write(repository, service=service)
    said = refusal(second, repository)
    assert "but the service is for Other; --allow-other-model" in said
    assert run(second, repository, "--allow-other-model").exit_code == 0


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
    said = refusal(make_published(), repository, option)
    assert "works with --direct only" in said


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
    told = refusal(published, repository, **{option: value.replace("DIGEST", published.name)})
    assert said in told
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
