"""Checkpoints in a repository of a hub, which a stand-in plays: the real one cannot be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import constants
from writable_hub import TOKEN, WritableHub, writable_hub

from quantlib.cli.verify import verify as verify_command
from quantlib.errors import InvalidInputError, QuantlibError, StoreError, VerificationError
from quantlib.publishing.linking import brought_folder
from quantlib.publishing.opening import open_destination, publishing_problems
from quantlib.publishing.published import PublishedFolder
from quantlib.publishing.reading import open_published
from quantlib.publishing.signing import KeySigner, PublicKey
from quantlib.publishing.unpublish import unpublish
from quantlib.publishing.verification import Policy, verify_for_promotion
from quantlib.steps.publish import publish, sign_published
from quantlib.store import LocalStore

BIG = "model-00001-of-00002.safetensors"
OTHER = "model-00002-of-00002.safetensors"
WEIGHTS = {
    BIG: b"weights" * 300_000,
    OTHER: b"others" * 1000,
    "vllm_config.json": b'{"quantization": "gptq", "dtype": "bfloat16"}',
}
ADDRESS = "hf://org/tiny-w4"


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
def run(make_run: Callable[..., Any]) -> Any:
    return make_run(weights=WEIGHTS)


def publish_run(run: Any, **arguments: Any) -> tuple[Any, str]:
    return publish(run.store, run.recipe, ADDRESS, run.checkpoint, run.validation, **arguments)


def test_a_repository_holds_the_published_folder(run, hub, keys, tmp_path) -> None:
    receipt, address = publish_run(run, signer=KeySigner(keys.private))
    commit = address.removeprefix(f"{ADDRESS}@")
    assert list(hub.repos["org/tiny-w4"])[-1] == commit
    assert hub.private["org/tiny-w4"] is True
    assert receipt.facts["address"] == address
    assert receipt.facts["storage_uri"] == f"{ADDRESS}:{commit}"

    folder = tmp_path / "pulled"
    for name, data in hub.files("org/tiny-w4").items():
        if name != ".gitattributes":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    policy = Policy(PublicKey(keys.public), digest=run.checkpoint.facts["checkpoint_digest"])
    assert verify_for_promotion(PublishedFolder(LocalStore(folder)), policy).manifest.release == 1


def test_the_card_has_what_the_hub_shows_of_a_quantized_model(run, hub) -> None:
    publish_run(run)
    _, front, _ = hub.files("org/tiny-w4")["README.md"].decode().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["base_model"] == "example-org/Tiny-Llama-6"
    assert card["base_model_relation"] == "quantized"
    assert (card["pipeline_tag"], card["library_name"]) == ("text-generation", "vllm")
    assert {"quantized", "gptq", "4-bit"} <= set(card["tags"])


def test_publishing_again_commits_nothing(run, hub) -> None:
    first, address = publish_run(run)
    hub.requests.clear()
    assert publish_run(run) == (first, address)
    assert not [path for method, path in hub.requests if method == "POST" and "/commit/" in path]
    assert hub.uploads == sorted((len(WEIGHTS[BIG]), len(WEIGHTS[OTHER])), key=hub.uploads.index)


def test_the_next_release_replaces_the_files_and_sends_what_changed(run, hub, make_run) -> None:
    publish_run(run)
    hub.uploads.clear()
    weights = {name: data for name, data in WEIGHTS.items() if name != OTHER}
    changed = make_run("changed", weights=weights | {"model-3.safetensors": b"third" * 100})
    _, address = publish_run(changed)
    files = hub.files("org/tiny-w4")
    assert hub.uploads == [500]
    assert OTHER not in files
    assert files[".gitattributes"]
    assert b'"release": 2' in files["manifest.json"]
    assert address.endswith(list(hub.repos["org/tiny-w4"])[-1])


def test_what_the_hub_holds_is_compared_with_what_was_sent(run, hub) -> None:
    hub.damage[BIG] = b"another"
    with pytest.raises(StoreError, match=rf"holds something else after .*: {BIG}; publish again"):
        publish_run(run)


def test_a_damaged_store_is_not_published(run, hub) -> None:
    path = run.store.local_path(run.checkpoint.path(BIG))
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"?")
    with pytest.raises(StoreError):
        publish_run(run)


def test_a_commit_of_somebody_else_meanwhile_is_not_overwritten(run, hub, monkeypatch) -> None:
    publish_run(run)
    place = open_destination(ADDRESS)
    info = place._info

    def older(revision: str) -> Any:
        found = info(revision)
        hub.commit("org/tiny-w4", {".gitattributes": b"", "README.md": b"theirs"})
        return found

    monkeypatch.setattr("quantlib.publishing.hub.HubDestination._info", lambda _, name: older(name))
    hub.repos["org/tiny-w4"][list(hub.repos["org/tiny-w4"])[-1]] = {}
    with pytest.raises(StoreError, match="another publisher committed meanwhile"):
        publish_run(run)
    assert hub.files("org/tiny-w4")["README.md"] == b"theirs"


def test_what_somebody_else_signed_stays(run, hub, make_keys) -> None:
    publish_run(run, signer=KeySigner(make_keys("a").private))
    with pytest.raises(InvalidInputError, match="is somebody else's signature"):
        publish_run(run, signer=KeySigner(make_keys("b").private))


def test_a_job_leads_to_its_commit(run, hub) -> None:
    place = open_destination(ADDRESS)
    assert place.published_of("sha256:4") is None
    _, address = publish_run(run, job="sha256:4")
    assert place.published_of("sha256:4") == address


def test_rights_are_looked_at_before_work(run, hub, monkeypatch) -> None:
    assert publishing_problems(ADDRESS) == []
    assert hub.repos == {}
    publish_run(run)
    assert publishing_problems(ADDRESS) == []
    [problem] = publishing_problems("hf://others/tiny-w4")
    assert "there is no such repository, and someone can make none of others" in str(problem)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    [problem] = publishing_problems(ADDRESS)
    assert "refuses access (401); set HF_TOKEN to a token that may write there" in str(problem)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    [problem] = publishing_problems(ADDRESS)
    assert "there is no token" in str(problem)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("hf://org", "is no model on the hub"),
        ("hf://datasets/org/name", "is no model on the hub"),
        ("hf://org/name@main", "names a revision"),
    ],
)
def test_addresses_that_are_none_are_refused(address: str, problem: str) -> None:
    [found] = publishing_problems(address)
    assert problem in str(found)


def commit_with(hub: WritableHub, **files: bytes | None) -> str:
    """Commits what is there with some files changed, or removed; its address."""
    changed = {name.replace("__", "."): data for name, data in files.items()}
    there = hub.files("org/tiny-w4") | changed
    kept = {name: data for name, data in there.items() if data is not None}
    return f"{ADDRESS}@{hub.commit('org/tiny-w4', kept)}"


def test_a_commit_is_verified_and_named_whatever_was_asked_for(run, hub, keys) -> None:
    _, address = publish_run(run, signer=KeySigner(keys.private))
    policy = Policy(PublicKey(keys.public), require_signature=True)
    for asked in (ADDRESS, f"{ADDRESS}@main", address):
        verified = verify_for_promotion(open_published(asked), policy)
        assert verified.address == address
        assert verified.digest == run.checkpoint.facts["checkpoint_digest"]
    done = CliRunner().invoke(verify_command, [address, "--public-key", str(keys.public)])
    assert done.exit_code == 0, done.exception
    assert f"address          {address}\n" in done.stdout


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"config__json": b"{}"}, "config.json: holds 2 bytes, not 23"),
        ({"config__json": None}, "config.json: there is no such file"),
        ({"modeling__py": b"import os"}, "modeling.py: is not in the manifest"),
        ({"manifest__json": None}, "without it the checkpoint is not published"),
        ({"model__sig": None}, "the checkpoint is not signed"),
    ],
)
def test_a_commit_that_is_not_as_published_is_refused(run, hub, keys, changes, problem) -> None:
    publish_run(run, signer=KeySigner(keys.private))
    address = commit_with(hub, **changes)
    with pytest.raises(VerificationError) as refused:
        verify_for_promotion(open_published(address), Policy(PublicKey(keys.public)))
    assert problem in str(refused.value)
    assert str(refused.value).startswith(f"{address}/")


def test_a_commit_is_signed_by_another_one(run, hub, keys) -> None:
    _, address = publish_run(run)
    signer = KeySigner(keys.private)
    signed, is_new = sign_published(run.store, run.recipe, open_published(ADDRESS), signer)
    assert (is_new, signed != address) == (True, True)
    verified = verify_for_promotion(open_published(ADDRESS), Policy(PublicKey(keys.public)))
    assert (verified.address, verified.manifest.release) == (signed, 2)
    again = sign_published(run.store, run.recipe, open_published(ADDRESS), signer)
    assert again == (signed, False)


def test_a_commit_is_brought_to_a_folder(run, hub) -> None:
    publish_run(run)
    with brought_folder(ADDRESS) as folder:
        assert (folder / BIG).read_bytes() == WEIGHTS[BIG]
        assert not (folder / ".gitattributes").exists()


def test_a_commit_is_not_taken_back(run, hub) -> None:
    _, address = publish_run(run)
    with pytest.raises(InvalidInputError) as refused:
        unpublish(address)
    assert str(refused.value) == (
        f"{address}: a commit stays in the history of its repository; remove the repository on the "
        "hub (`hf repos delete org/tiny-w4`), or its tags job-… for `quantlib watch` to publish "
        "again"
    )
    assert list(hub.repos["org/tiny-w4"])[-1] == address.rpartition("@")[2]


@pytest.mark.parametrize("asked", ["hf://org/none", f"{ADDRESS}@none"])
def test_a_repository_or_revision_that_is_not_there_is_told(run, hub, asked: str) -> None:
    publish_run(run)
    with pytest.raises(InvalidInputError, match=r"is not on http|has no revision 'none'"):
        open_published(asked)


def test_a_hub_that_does_not_answer_is_told_of_no_step(hub, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(QuantlibError) as told:
        open_published(ADDRESS)
    assert str(told.value).startswith(f"{ADDRESS}@main: no answer from http://127.0.0.1:9")
