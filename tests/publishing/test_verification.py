"""What verification finds: each way in which a published checkpoint can be wrong."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_runs import sign

from quantlib.errors import InvalidInputError, QuantlibError, VerificationError
from quantlib.publishing.published import PublishedFolder
from quantlib.publishing.signing import Identity, KeySigner, PublicKey
from quantlib.publishing.verification import Policy, Verified, verify_for_promotion
from quantlib.report.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    checkpoint_digest,
    read_manifest,
    verify_published,
)
from quantlib.report.model import Report
from quantlib.report.provenance import subjects_of
from quantlib.store import FileRecord, LocalStore, Store, open_store

Fixture = Callable[..., Any]
WEIGHTS = "model.safetensors"
REPORT = "quantization_report.json"


def problems_of(published: Store, policy: Policy | None = None) -> list[str]:
    with pytest.raises(VerificationError) as caught:
        verify_for_promotion(PublishedFolder(published), policy or Policy())
    assert caught.value.exit_code == 1
    start = f"{published.address}/"
    return [str(problem).replace(start, "") for problem in caught.value.problems]


def change_manifest(published: Store, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads(bytes(published.read(MANIFEST_NAME)))
    change(manifest)
    published.put_bytes(json.dumps(manifest).encode(), MANIFEST_NAME)


def record_of(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def differs(published: bytes, found: bytes) -> str:
    """What is said of weights that were altered: both digests, as far as they are shown."""
    one, other = (hashlib.sha256(data).hexdigest()[:12] for data in (found, published))
    return f"{WEIGHTS}: its sha256 is {one}…, not the manifest's {other}…"


def test_an_unsigned_checkpoint_is_verified_where_no_signature_is_asked_for(
    published: Store,
) -> None:
    read: list[int] = []
    verified = verify_for_promotion(PublishedFolder(published), Policy(), read.append)
    manifest = read_manifest(published)
    assert verified == Verified(
        address=published.address,
        manifest=manifest,
        report=Report.from_json(bytes(published.read(REPORT))),
        vllm_version="0.32.0",
        serve={"dtype": "bfloat16"},
        signed=False,
        signer=None,
    )
    assert verified.digest == manifest.checkpoint
    assert sum(read) == sum(record.bytes for record in manifest.files.values())


def test_an_unsigned_checkpoint_is_refused_where_a_key_is_given(
    published: Store, keys: Any
) -> None:
    policy = Policy(PublicKey(keys.public))
    assert problems_of(published, policy) == [
        "model.sig: there is no such file: the checkpoint is not signed"
    ]


def test_a_signed_checkpoint_is_verified_with_its_key(published: Store, keys: Any) -> None:
    sign(published, KeySigner(keys.private))
    verified = verify_for_promotion(
        PublishedFolder(published), Policy(PublicKey(keys.public), True)
    )
    assert verified.signed
    assert verified.signer
    assert verified.signer.startswith("key ")
    unchecked = verify_for_promotion(PublishedFolder(published), Policy())
    assert (unchecked.signed, unchecked.signer) == (True, None)


def test_a_signature_by_another_key_is_refused(
    published: Store, keys: Any, make_keys: Fixture
) -> None:
    sign(published, KeySigner(make_keys("other").private))
    [problem] = problems_of(published, Policy(PublicKey(keys.public)))
    assert problem.startswith("model.sig: is no signature of key ")


def test_another_keys_signature_that_names_this_key_is_refused(
    published: Store, keys: Any, make_keys: Fixture
) -> None:
    sign(published, KeySigner(keys.private))
    right = json.loads(bytes(published.read(SIGNATURE_NAME)))
    sign(published, KeySigner(make_keys("other").private), replace=True)
    forged = json.loads(bytes(published.read(SIGNATURE_NAME)))
    forged["verificationMaterial"] = right["verificationMaterial"]
    published.put_bytes(json.dumps(forged).encode(), SIGNATURE_NAME)
    [problem] = problems_of(published, Policy(PublicKey(keys.public)))
    assert problem.startswith("model.sig: is no signature of key ")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"mediaType": 1}', b"\xff\xfe"])
def test_what_is_no_signature_is_refused(published: Store, keys: Any, content: bytes) -> None:
    published.put_bytes(content, SIGNATURE_NAME)
    [problem] = problems_of(published, Policy(PublicKey(keys.public)))
    assert problem.startswith("model.sig: is no signature of key ")


def test_the_signature_of_another_checkpoint_is_refused(
    published: Store, make_run: Fixture, publish_run: Fixture, destination: str, keys: Any
) -> None:
    run = make_run("other", weights={WEIGHTS: b"other", "vllm_config.json": b"{}"})
    other = publish_run(run, destination)
    sign(other, KeySigner(keys.private))
    published.put_bytes(bytes(other.read(SIGNATURE_NAME)), SIGNATURE_NAME)
    [problem] = problems_of(published, Policy(PublicKey(keys.public)))
    assert "covers other content of README.md, manifest.json, model.safetensors" in problem


def test_a_truncated_file_is_found(published: Store) -> None:
    data = bytes(published.read(WEIGHTS))
    published.put_bytes(data[:-1], WEIGHTS)
    assert problems_of(published) == ["model.safetensors: holds 69999 bytes, not 70000"]


def test_one_byte_that_was_altered_is_found(published: Store) -> None:
    data = bytes(published.read(WEIGHTS))
    published.put_bytes(data[:-1] + b"?", WEIGHTS)
    assert problems_of(published) == [differs(data, data[:-1] + b"?")]


def test_a_byte_is_found_also_where_the_server_tells_the_old_digest(
    make_run: Fixture, publish_run: Fixture, s3_address: str
) -> None:
    published = publish_run(make_run(), s3_address)
    data = bytes(published.read(WEIGHTS))
    published.client.put_object(
        Bucket=published.bucket,
        Key=published.key(WEIGHTS),
        Body=data[:-1] + b"?",
        Metadata={"sha256": hashlib.sha256(data).hexdigest()},
    )
    verify_published(published)  # takes the server's word
    assert problems_of(published) == [differs(data, data[:-1] + b"?")]


def test_a_manifest_that_was_altered_along_with_a_file_is_found(
    published: Store, keys: Any
) -> None:
    sign(published, KeySigner(keys.private))
    published.put_bytes(b"other", WEIGHTS)
    change_manifest(published, lambda m: m["files"].update({WEIGHTS: record_of(b"other")}))
    assert problems_of(published, Policy(PublicKey(keys.public)))[0] == (
        "manifest.json: its files do not have the checkpoint's digest"
    )


def test_a_folder_that_was_forged_is_found_by_its_receipts_and_its_signature(
    make_run: Fixture, publish_run: Fixture, tmp_path: Path, keys: Any
) -> None:
    """Everything that an attacker can compute is right: names, digests, report, provenance."""
    published = publish_run(make_run(), str(tmp_path / "published"))
    sign(published, KeySigner(keys.private))
    manifest = json.loads(bytes(published.read(MANIFEST_NAME)))
    old, new = manifest["checkpoint"], dict(manifest["files"])
    new[WEIGHTS] = record_of(b"other")
    files = {name: FileRecord.model_validate(record) for name, record in new.items()}
    manifest["checkpoint"] = checkpoint_digest(files)
    report = bytes(published.read(REPORT)).replace(old.encode(), manifest["checkpoint"].encode())
    statement = json.loads(bytes(published.read("provenance.json")))
    loaded = {name: files[name] for name in sorted(s["name"] for s in statement["subject"])}
    statement["subject"] = subjects_of(loaded)
    provenance = json.dumps(statement).encode()
    contents = {WEIGHTS: b"other", REPORT: report, "provenance.json": provenance}
    for name, data in contents.items():
        published.put_bytes(data, name)
        new[name] = record_of(data)
    manifest["files"] = new
    published.put_bytes(json.dumps(manifest).encode(), MANIFEST_NAME)
    folder = Path(published.address)
    forged = LocalStore(folder.rename(folder.with_name(manifest["checkpoint"][7:])))
    assert problems_of(forged) == ["receipts.json: is of another checkpoint than the manifest"]
    _, problem = problems_of(forged, Policy(PublicKey(keys.public)))
    assert "covers other content of manifest.json, model.safetensors" in problem


def test_a_checkpoint_that_failed_the_gate_is_refused(published: Store) -> None:
    gate = {"outcome": "regression", "reason": "kl_mean is above its limit"}
    change_manifest(published, lambda manifest: manifest.update(gate=gate))
    assert problems_of(published) == [
        "manifest.json: its checkpoint did not pass the gate: kl_mean is above its limit",
        f"{REPORT}: tells another checkpoint, verdict or figures than the manifest",
    ]


def test_a_manifest_without_a_gate_is_refused(published: Store) -> None:
    change_manifest(published, lambda manifest: manifest.pop("gate"))
    [problem] = problems_of(published)
    assert problem.startswith("manifest.json: is no valid manifest")
    assert "gate" in problem


def test_a_verdict_that_is_not_the_reports_is_refused(published: Store) -> None:
    change_manifest(published, lambda manifest: manifest["figures"].update(kl_mean=0.001))
    assert problems_of(published) == [
        f"{REPORT}: tells another checkpoint, verdict or figures than the manifest"
    ]


def test_provenance_of_other_files_is_refused(published: Store) -> None:
    statement = json.loads(bytes(published.read("provenance.json")))
    statement["subject"].pop()
    data = json.dumps(statement).encode()
    published.put_bytes(data, "provenance.json")
    change_manifest(published, lambda m: m["files"].update({"provenance.json": record_of(data)}))
    assert problems_of(published) == ["provenance.json: is of other files than the manifest's"]


def test_serving_arguments_are_a_mapping(
    make_run: Fixture, publish_run: Fixture, tmp_path: Path
) -> None:
    for name, weights, what in (
        ("list", {"vllm_config.json": b"[]"}, "vllm_config.json: does not hold a mapping"),
        ("none", {"a.safetensors": b""}, "vllm_config.json: is not in the manifest"),
    ):
        run = make_run(name, weights=weights)
        published = publish_run(run, str(tmp_path / "published"))
        assert problems_of(published) == [what]


def test_a_folder_without_a_manifest_is_refused(published: Store) -> None:
    published.delete(MANIFEST_NAME)
    assert problems_of(published) == [
        "manifest.json: there is no such file; without it the checkpoint is not published"
    ]


def test_every_fault_is_told_at_once(published: Store, keys: Any, destination: str) -> None:
    published.put_bytes(b"other", WEIGHTS)
    published.put_bytes(b"print()", "extra.py")
    published.delete("tokenizer.json")
    published.put_bytes(b"{}", "provenance.json")
    moved = open_store(f"{destination}/latest")
    for file in published.list():
        moved.put_bytes(bytes(published.read(file.path)), file.path)
    found = problems_of(moved, Policy(PublicKey(keys.public)))
    assert found == [
        f"{moved.address}: is not named by its checkpoint's digest, "
        f"{read_manifest(moved).checkpoint}; say with --digest which checkpoint it has to be",
        "model.safetensors: holds 5 bytes, not 70000",
        "provenance.json: holds 2 bytes, not "
        f"{read_manifest(moved).files['provenance.json'].bytes}",
        "tokenizer.json: there is no such file",
        "extra.py: is not in the manifest",
        "model.sig: there is no such file: the checkpoint is not signed",
    ]


def test_a_policy_that_cannot_be_applied_is_refused_before_anything_is_read(
    tmp_path: Path, keys: Any, monkeypatch: Any
) -> None:
    nowhere = LocalStore(tmp_path / "nowhere")
    with pytest.raises(InvalidInputError, match="nothing to check one with"):
        verify_for_promotion(PublishedFolder(nowhere), Policy(require_signature=True))
    with pytest.raises(InvalidInputError, match=r"public key .* cannot be read"):
        verify_for_promotion(PublishedFolder(nowhere), Policy(PublicKey(tmp_path / "none")))
    with pytest.raises(InvalidInputError, match="is no such key in PEM"):
        verify_for_promotion(PublishedFolder(nowhere), Policy(PublicKey(keys.private)))
    monkeypatch.setitem(sys.modules, "model_signing.verifying", None)
    with pytest.raises(InvalidInputError, match="pip install"):
        verify_for_promotion(
            PublishedFolder(nowhere), Policy(Identity("someone", "https://issuer.example.org"))
        )


def test_a_keyless_signature_is_of_an_identity(
    published: Store, keys: Any, monkeypatch: Any
) -> None:
    """Sigstore's root of trust is out of reach here, so a key stands in for it."""
    from model_signing import verifying

    asked = []

    def stand_in(config: Any, *, identity: str, oidc_issuer: str) -> None:
        asked.append((identity, oidc_issuer))
        config.use_elliptic_key_verifier(public_key=keys.public)

    monkeypatch.setattr(verifying.Config, "use_sigstore_verifier", stand_in)
    sign(published, KeySigner(keys.private))
    identity = Identity("release@example.org", "https://issuer.example.org")
    verified = verify_for_promotion(PublishedFolder(published), Policy(identity))
    assert verified.signer == "release@example.org (https://issuer.example.org)"
    assert asked == [("release@example.org", "https://issuer.example.org")]


def test_servers_that_cannot_be_reached_are_no_fault_of_the_signature(
    published: Store, keys: Any, monkeypatch: Any
) -> None:
    from model_signing import verifying

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("failed to refresh")

    monkeypatch.setattr(verifying.Config, "use_sigstore_verifier", unreachable)
    sign(published, KeySigner(keys.private))
    with pytest.raises(QuantlibError, match="cannot be checked: failed to refresh") as caught:
        verify_for_promotion(
            PublishedFolder(published), Policy(Identity("someone", "https://issuer.example.org"))
        )
    assert not isinstance(caught.value, VerificationError)
