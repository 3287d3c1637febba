"""Checkpoints that are not promoted: neither a repository nor a cluster is changed."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from promotion.conftest import MakePublished, Repository

from quantlib.cli.promote import promote
from quantlib.errors import VerificationError


@pytest.fixture(params=["repository", "direct"])
def refused(
    request: pytest.FixtureRequest,
    repository: Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:
    """Promotes, and tells why that was refused."""
    for name in ("QUANTLIB_PUBLIC_KEY", "QUANTLIB_SIGNING", "QUANTLIB_SIGNING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    # A checkpoint is verified before the cluster is asked for anything.
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    options = ["--service", "tiny", "--namespace", "serving"]
    if request.param == "direct":
        options.append("--direct")
    else:
        options += ["--repo", str(repository.remote), "--overlay", "overlays/production"]

    def run(published: Path, *further: str) -> str:
        uri = f"s3://models/tiny/{published.name}"
        words = [str(published), *options, "--storage-uri", uri, *further]
        done = CliRunner().invoke(promote, words)
        assert isinstance(done.exception, VerificationError), done.exception
        assert done.exception.exit_code == 1
        assert repository.branches() == ["main"]
        return str(done.exception)

    return run


@pytest.fixture
def make_key(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Makes a private and a public key."""

    def make(name: str) -> tuple[str, str]:
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        curve = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"]
        subprocess.run([*curve, "-out", private], check=True, capture_output=True)
        show = ["openssl", "ec", "-in", private, "-pubout", "-out", public]
        subprocess.run(show, check=True, capture_output=True)
        return str(private), str(public)

    return make


def test_an_unsigned_checkpoint(
    make_published: MakePublished, refused: Any, make_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QUANTLIB_SIGNING_KEY", raising=False)
    _, public = make_key("release")
    assert "model.sig" in refused(make_published(), "--public-key", public)


def test_a_signature_of_somebody_else(
    make_published: MakePublished, refused: Any, make_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, _ = make_key("stranger")
    _, public = make_key("release")
    monkeypatch.setenv("QUANTLIB_SIGNING_KEY", private)
    assert "is no signature of" in refused(make_published(), "--public-key", public)


def test_a_signature_of_other_content(
    make_published: MakePublished, refused: Any, make_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = make_key("release")
    monkeypatch.setenv("QUANTLIB_SIGNING_KEY", private)
    one, two = make_published("one"), make_published("two")
    rewrite(two / "model.sig", (one / "model.sig").read_bytes())
    assert "it covers other content" in refused(two, "--public-key", public)


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json"])
def test_a_truncated_file(make_published: MakePublished, refused: Any, name: str) -> None:
    published = make_published("a longer seed")
    rewrite(published / name, (published / name).read_bytes()[:-3])
    assert name in refused(published)


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "provenance.json"])
def test_a_byte_that_was_altered(make_published: MakePublished, refused: Any, name: str) -> None:
    published = make_published()
    data = bytearray((published / name).read_bytes())
    data[len(data) // 2] ^= 1
    rewrite(published / name, bytes(data))
    assert name in refused(published)


def test_a_file_that_is_missing(make_published: MakePublished, refused: Any) -> None:
    published = make_published()
    (published / "weights.safetensors").unlink()
    assert "weights.safetensors: there is no such file" in refused(published)


def alter(published: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((published / "manifest.json").read_text())
    change(manifest)
    rewrite(published / "manifest.json", json.dumps(manifest).encode())


def test_a_gate_that_was_not_passed(make_published: MakePublished, refused: Any) -> None:
    published = make_published()
    alter(
        published, lambda manifest: manifest["gate"].update(outcome="regression", reason="too far")
    )
    assert "its checkpoint did not pass the gate: too far" in refused(published)


def test_a_gate_that_is_missing(make_published: MakePublished, refused: Any) -> None:
    published = make_published()
    alter(published, lambda manifest: manifest.pop("gate"))
    assert "is no valid manifest" in refused(published)


def test_a_folder_that_is_not_published(make_published: MakePublished, refused: Any) -> None:
    published = make_published()
    (published / "manifest.json").unlink()
    assert "without it the checkpoint is not published" in refused(published)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--url", "tiny.serving", "is no address, such as http"),
        ("--canary-url", "http://", "is no address, such as http"),
        ("--canary", "50,10", "is not rising numbers"),
        ("--canary", "10,100", "is not rising numbers"),
        ("--timeout", "0", "not in the range"),
        ("--max-seconds", "-1", "not in the range"),
    ],
)
def test_options_that_would_fail_after_the_change(option: str, value: str, said: str) -> None:
    words = ["published", "--service", "tiny", "--namespace", "serving", "--direct"]
    done = CliRunner().invoke(promote, [*words, option, value])
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        {"trust_remote_code": True},
        {"middleware": "evil.Middleware"},
        {"model": "attacker/other"},
        {"load_format": "pt"},
        {"dtype": "--trust-remote-code"},
    ],
)
def test_a_folder_that_chooses_arguments(
    make_published: MakePublished, refused: Any, arguments: dict[str, Any]
) -> None:
    content = json.dumps({"dtype": "bfloat16"} | arguments).encode()
    published = make_published(**{"vllm_config__json": content})
    said = refused(published)
    assert "vllm_config.json: is refused: " in said
    assert len(said.splitlines()) == 1
