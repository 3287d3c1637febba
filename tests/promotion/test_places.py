"""Checkpoints that are published as images or commits, promoted by a commit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import constants
from oci_registry import oci_registry
from promotion.conftest import MakePublished, Repository
from promotion.proposing import OVERLAY, PATCH, merge
from report.conftest import WEIGHTS, commit_run
from writable_hub import TOKEN, WritableHub, writable_hub

from quantlib.cli.promote import promote
from quantlib.errors import InvalidInputError
from quantlib.promotion.checks import check_published, storage_uri
from quantlib.promotion.state import State, successor
from quantlib.publishing import folder
from quantlib.steps.publish import publish

FILES = WEIGHTS | {"vllm_config.json": b'{"quantization": "gptq", "dtype": "bfloat16"}'}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with oci_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    with writable_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def image(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A checkpoint as an image, published on the first of the month."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    yield published_at(f"oci://{registry}/team/tiny", tmp_path, monkeypatch)


def published_at(
    destination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: str = "a", day: int = 1
) -> str:
    weights = FILES | {"weights.safetensors": seed.encode()}
    run = commit_run(tmp_path / f"run-{seed}", weights=weights)
    when = datetime.fromisoformat(f"2026-11-0{day}T00:00:00+00:00")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "now", lambda: when)
        return publish(run.store, run.recipe, destination, run.checkpoint, run.validation)[1]


def proposed(published: str, repository: Repository, *further: str) -> Result:
    words = ["--service", "tiny", "--namespace", "serving", "--repo", str(repository.remote)]
    return CliRunner().invoke(promote, [published, *words, "--overlay", OVERLAY, *further])


def patch_of(repository: Repository) -> tuple[str, dict[str, str]]:
    """The URI that the proposed service loads, and its annotations, which are merged."""
    [branch] = [name for name in repository.branches() if name.startswith("promote/")]
    merge(repository, branch)
    repository.git("push", "--quiet", "origin", f":{branch}")
    patch = yaml.safe_load(repository.read("main", PATCH))
    return patch["spec"]["predictor"]["model"]["storageUri"], patch["metadata"]["annotations"]


def test_an_image_is_served_by_its_digest_whatever_names_it(
    image: str, repository: Repository
) -> None:
    digest = check_published(image).digest
    tagged = image.partition("@")[0] + f":{digest.removeprefix('sha256:')}"
    done = proposed(tagged, repository)
    assert done.exit_code == 0, done.exception
    uri, annotations = patch_of(repository)
    assert uri == image
    assert annotations["quantlib.io/digest"] == digest
    assert annotations["quantlib.io/report"] == f"{image}/quantization_report.json"
    again = proposed(image, repository)
    assert "serves sha256:" in again.output


def test_a_commit_is_served_by_its_name(
    hub: WritableHub, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = published_at("hf://org/tiny-w4", tmp_path, monkeypatch)
    done = proposed("hf://org/tiny-w4", repository)
    assert done.exit_code == 0, done.exception
    assert patch_of(repository)[0] == address.replace("@", ":")
    assert "serves sha256:" in proposed(address, repository).output


def test_an_older_image_is_a_downgrade_also_of_a_service_that_notes_nothing(
    image: str,
    repository: Repository,
    registry: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    newer = published_at(f"oci://{registry}/team/tiny", tmp_path, monkeypatch, "b", 2)
    assert proposed(newer, repository).exit_code == 0
    patch_of(repository)
    refused = proposed(image, repository)
    assert isinstance(refused.exception, InvalidInputError)
    pin = newer.rpartition("@")[2].removeprefix("sha256:")[:12]
    expected = f"before what serves now ({pin}, release 2, 2026-11-02 00:00 UTC)"
    assert expected in str(refused.exception)
    # Set up by hand: what it serves says which release that is.
    place = repository.copy / PATCH
    patch = yaml.safe_load(place.read_text())
    del patch["metadata"]["annotations"]
    place.write_text(yaml.safe_dump(patch))
    repository.commit()
    again = proposed(image, repository)
    assert expected in str(again.exception)


def test_a_mirror_serves_what_has_the_digest(image: str, make_published: MakePublished) -> None:
    verified = check_published(image)
    digest = image.rpartition("@")[2]
    mirror = f"oci+native://mirror.example.org/tiny@{digest}"
    assert storage_uri(verified, mirror) == mirror
    folder_of_it = f"pvc://models/tiny/{verified.digest.removeprefix('sha256:')}"
    assert storage_uri(verified, folder_of_it) == f"{folder_of_it}/"
    for given in ("oci://mirror.example.org/tiny:stable", f"oci://m.example.org/t@sha256:{4:064}"):
        with pytest.raises(InvalidInputError) as refused:
            storage_uri(verified, given)
        assert str(refused.value) == (
            f"--storage-uri: {given} does not end in the checkpoint's digest {verified.digest} or "
            f"in {digest}"
        )


def test_what_is_served_is_known_by_the_image_of_its_report(image: str) -> None:
    verified = check_published(image)
    state = successor(State(None, ()), verified, image, "InferenceService")
    assert (state.digest, state.model) == (verified.digest, "Tiny-Llama-6")
    by_hand = State(f"{image[:-4]}0000", state.arguments, state.annotations)
    assert by_hand.digest is None


def test_a_deployment_does_not_read_images(image: str) -> None:
    verified = check_published(image)
    with pytest.raises(InvalidInputError, match="vLLM in a Deployment does not read oci://"):
        successor(State(None, ()), verified, image, "Deployment")
