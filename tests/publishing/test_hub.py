"""Checkpoints in a repository of a hub, which a stand-in plays: the real one cannot be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from writable_hub import TOKEN, WritableHub, writable_hub

from quantlib.errors import InvalidInputError, StoreError
from quantlib.publishing.opening import open_destination, publishing_problems
from quantlib.publishing.signing import KeySigner, PublicKey
from quantlib.publishing.verification import Policy, verify_for_promotion
from quantlib.steps.publish import publish
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
    assert verify_for_promotion(LocalStore(folder), policy).manifest.release == 1


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
