"""What is found in a bucket is evidence of nothing: publish signs what it built, and only that."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from published_runs import sign

from quantlib.cli.unpublish import unpublish as unpublish_command
from quantlib.cli.verify import verify
from quantlib.errors import InvalidInputError, VerificationError
from quantlib.promotion.checks import check_published
from quantlib.publishing.jobs import enter_job, published_of
from quantlib.publishing.linking import linked_folder
from quantlib.publishing.published import PublishedFolder
from quantlib.publishing.signing import KeySigner, PublicKey
from quantlib.publishing.unpublish import unpublish
from quantlib.publishing.verification import Policy, verify_for_promotion
from quantlib.report.manifest import (
    MANIFEST_NAME,
    RECEIPTS_NAME,
    SIGNATURE_NAME,
    read_manifest,
    verify_published,
)
from quantlib.steps.publish import publish
from quantlib.store import LocalStore, Store, open_store

Fixture = Callable[..., Any]
REPORT = "quantization_report.json"
WEIGHTS = {"model.safetensors": b"weights" * 10_000}
"""Some of the fixtures' run."""


def forge(published: Store) -> None:
    """What somebody who may write the bucket can do: all digests are right, little else is."""
    report = json.loads(bytes(published.read(REPORT)))
    report["evaluation"]["kl_mean"] = 1e-6
    report["model"]["source"]["repo"] = "meta-llama/Trusted"
    published.put_bytes(json.dumps(report).encode(), REPORT)
    manifest = json.loads(bytes(published.read(MANIFEST_NAME)))
    manifest["figures"]["kl_mean"] = 1e-6
    manifest["source"]["repo"] = "meta-llama/Trusted"
    manifest["release"], manifest["published_at"] = 900, "2099-01-01T00:00:00Z"
    manifest["files"][REPORT] = published.record(REPORT).model_dump(exclude_none=True)
    published.put_bytes(json.dumps(manifest).encode(), MANIFEST_NAME)


def test_a_manifest_that_is_found_is_never_signed(
    make_run: Fixture, publish_run: Fixture, destination: str, keys: Any, monkeypatch: Any
) -> None:
    run = make_run()
    published = publish_run(run, destination)
    forge(published)
    monkeypatch.setenv("QUANTLIB_SIGNING_KEY", str(keys.private))
    publish_run(run, destination)
    verified = verify_for_promotion(
        PublishedFolder(published), Policy(PublicKey(keys.public), True)
    )
    assert verified.manifest.figures.kl_mean == 0.108
    assert verified.manifest.source["repo"] == "example-org/Tiny-Llama-6"
    assert abs(datetime.now(UTC) - verified.manifest.published_at) < timedelta(minutes=10)
    assert b"Trusted" not in published.read("README.md")


def test_a_manifest_that_says_the_same_is_signed_with_a_time_of_our_own(
    make_run: Fixture, publish_run: Fixture, tmp_path: Path, keys: Any, monkeypatch: Any
) -> None:
    run, destination = make_run(), str(tmp_path / "published")
    published = publish_run(run, destination)
    manifest = json.loads(bytes(published.read(MANIFEST_NAME)))
    manifest["published_at"] = "2099-01-01T00:00:00Z"
    published.put_bytes(json.dumps(manifest).encode(), MANIFEST_NAME)
    monkeypatch.setenv("QUANTLIB_SIGNING_KEY", str(keys.private))
    publish_run(run, destination)
    verified = verify_for_promotion(
        PublishedFolder(published), Policy(PublicKey(keys.public), True)
    )
    assert verified.manifest.published_at < datetime.now(UTC) + timedelta(minutes=10)
    first = bytes(published.read(MANIFEST_NAME))
    publish_run(run, destination)
    assert bytes(published.read(MANIFEST_NAME)) == first


@pytest.mark.parametrize("damage", [b"", b"[" * 9999, b"{}", b"\xff"])
def test_a_manifest_that_is_none_is_replaced(
    make_run: Fixture, publish_run: Fixture, tmp_path: Path, damage: bytes
) -> None:
    run, destination = make_run(), str(tmp_path / "published")
    published = publish_run(run, destination)
    published.put_bytes(damage, MANIFEST_NAME)
    publish_run(run, destination)
    verify_for_promotion(PublishedFolder(published), Policy())


def with_reason(run: Any, number: int) -> Any:
    """The same checkpoint by another recipe."""
    publishing = run.recipe.validation.model_copy(update={"max_new_tokens": 16 + number})
    return run.recipe.model_copy(update={"validation": publishing})


def test_two_publishers_leave_one_whole_folder(
    make_run: Fixture, destination: str, keys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("QUANTLIB_SIGNING_KEY", str(keys.private))
    run = make_run()

    def one(number: int) -> Store:
        recipe = with_reason(run, number)
        _, address = publish(run.store, recipe, destination, run.checkpoint, run.validation)
        return open_store(address)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one, range(2))
    assert first.address == second.address
    verified = verify_for_promotion(PublishedFolder(first), Policy(PublicKey(keys.public), True))
    assert verified.manifest.release == 2


def test_who_has_no_key_replaces_nothing_that_is_signed(
    make_run: Fixture, publish_run: Fixture, tmp_path: Path, keys: Any
) -> None:
    run, destination = make_run(), str(tmp_path / "published")
    published = publish_run(run, destination)
    sign(published, KeySigner(keys.private))
    before = bytes(published.read(SIGNATURE_NAME))
    publish_run(run, destination)  # says the same
    assert bytes(published.read(SIGNATURE_NAME)) == before
    with pytest.raises(InvalidInputError, match="no key is configured here"):
        publish(run.store, with_reason(run, 1), destination, run.checkpoint, run.validation)
    verify_for_promotion(PublishedFolder(published), Policy(PublicKey(keys.public), True))


def test_releases_of_a_model_are_counted(
    make_run: Fixture, publish_run: Fixture, destination: str
) -> None:
    releases = []
    for number in range(3):
        weights = {"model.safetensors": bytes([number]), "vllm_config.json": b"{}"}
        run = make_run(f"run-{number}", weights=weights)
        releases.append(read_manifest(publish_run(run, destination)).release)
    assert releases == [1, 2, 3]


def test_a_folder_tells_what_made_it_without_its_store(
    make_run: Fixture, publish_run: Fixture, tmp_path: Path
) -> None:
    run = make_run()
    published = publish_run(run, str(tmp_path / "published"))
    content = json.loads(bytes(published.read(RECEIPTS_NAME)))
    assert [each["step"] for each in content["receipts"]][-1] == "validate"
    assert {each["step"] for each in content["receipts"]} >= {"fetch", "quantize", "merge"}
    content["receipts"].pop(0)
    data = json.dumps(content).encode()
    published.put_bytes(data, RECEIPTS_NAME)
    manifest = json.loads(bytes(published.read(MANIFEST_NAME)))
    manifest["files"][RECEIPTS_NAME] = published.record(RECEIPTS_NAME).model_dump(exclude_none=True)
    published.put_bytes(json.dumps(manifest).encode(), MANIFEST_NAME)
    with pytest.raises(VerificationError, match=r"rests on a .* that is not among them"):
        verify_for_promotion(PublishedFolder(published), Policy())


def test_a_publication_in_the_store_copies_nothing(
    make_run: Fixture, publish_run: Fixture, tmp_path: Path
) -> None:
    run = make_run()
    blobs = {file.path for file in run.store.list("blobs")}
    published = publish_run(run, f"{run.store.address}/published")
    names = {file.path for file in published.list()}
    assert linked_folder(tmp_path) is None
    assert "model.safetensors" not in names and MANIFEST_NAME in names
    assert read_manifest(published).by_reference
    verify_for_promotion(PublishedFolder(published), Policy())
    added = {file.path for file in run.store.list("blobs")} - blobs
    assert len(added) == 1, "the manifest, as the step's result"
    done = CliRunner().invoke(verify, [published.address])
    assert done.exit_code == 0, done.output
    links = linked_folder(Path(published.address))
    assert links is not None and links.name == "Tiny-Llama-6"
    assert (links / "model.safetensors").read_bytes() == WEIGHTS["model.safetensors"]
    assert (links / "README.md").read_text().startswith("---")
    with pytest.raises(InvalidInputError, match=r"which no service reads; publish the checkpoint"):
        check_published(published.address)
    run.store.delete(run.checkpoint.path("model.safetensors"))
    with pytest.raises(InvalidInputError, match=r"blobs/sha256/.*there is no such file"):
        verify_published(published)


def test_only_one_place_in_the_store_is_for_publications(
    make_run: Fixture, publish_run: Fixture
) -> None:
    run = make_run()
    for inside in ("", "/steps", "/published/more"):
        with pytest.raises(InvalidInputError, match=r"lies in the store; give .*/published, or a"):
            publish_run(run, run.store.address + inside)


def test_a_copy_is_verified_by_the_digest_that_it_must_have(
    make_run: Fixture, publish_run: Fixture, tmp_path: Path
) -> None:
    published = publish_run(make_run(), str(tmp_path / "published"))
    digest = read_manifest(published).checkpoint
    copy = Path(published.address).rename(tmp_path / "models")
    run = CliRunner().invoke
    assert isinstance(run(verify, [str(copy)]).exception, VerificationError)
    assert run(verify, [str(copy), "--digest", digest]).exit_code == 0
    other = run(verify, [str(copy), "--digest", "sha256:" + "0" * 64])
    assert f"is of the checkpoint {digest}, not sha256:000" in str(other.exception)
    short = run(verify, [str(copy), "--digest", "sha256:12"])
    assert isinstance(short.exception, InvalidInputError)
    (copy / "model.safetensors").write_bytes(b"other")
    assert isinstance(run(verify, [str(copy), "--digest", digest]).exception, VerificationError)


def test_unpublish_takes_back_all_that_was_published(
    make_run: Fixture, publish_run: Fixture, destination: str
) -> None:
    published = publish_run(make_run(), destination)
    digest = read_manifest(published).checkpoint
    enter_job(destination, "sha256:1", published.address, digest)
    enter_job(destination, "sha256:2", f"{published.address}0", digest)
    assert published_of(destination, "sha256:1") == published.address
    done = CliRunner().invoke(unpublish_command, [published.address])
    assert done.exit_code == 0, done.exception
    assert not list(published.list())
    assert [file.path for file in open_store(destination).list("jobs")] == ["jobs/2.json"]
    with pytest.raises(InvalidInputError, match="is no published checkpoint"):
        unpublish(published.address)


def test_unpublish_goes_on_where_it_was_killed(
    make_run: Fixture, publish_run: Fixture, tmp_path: Path, monkeypatch: Any
) -> None:
    published = publish_run(make_run(), str(tmp_path / "published"))
    (Path(published.address) / "notes.txt").write_text("somebody's")
    delete, removed = LocalStore.delete, []

    def crash(store: LocalStore, path: str) -> None:
        if len(removed) == 3:
            raise KeyboardInterrupt
        if store.address == published.address:
            removed.append(path)
        delete(store, path)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "delete", crash)
        with pytest.raises(KeyboardInterrupt):
            unpublish(published.address)
    assert removed[0] == MANIFEST_NAME
    assert unpublish(published.address) == (
        published.address,
        [published.full_address("notes.txt")],
    )
    assert [file.path for file in published.list()] == ["notes.txt"]


def test_a_published_folder_that_is_gone_is_no_longer_up_to_date(
    make_run: Fixture, publish_run: Fixture, destination: str
) -> None:
    published = publish_run(make_run(), destination)
    enter_job(destination, "sha256:1", published.address, read_manifest(published).checkpoint)
    published.delete(MANIFEST_NAME)
    assert published_of(destination, "sha256:1") is None
