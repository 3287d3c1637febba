"""Signatures of published checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from published_runs import sign

from quantlib.errors import InvalidInputError
from quantlib.publishing.signing import (
    KeySigner,
    PublicKey,
    SignatureError,
    sign_manifest,
    signer_from_environment,
    verify_signature,
)
from quantlib.report.manifest import MANIFEST_NAME, SIGNATURE_NAME, verify_published
from quantlib.store import LocalStore, Store

Fixture = Callable[..., Any]


def check(published: Store, public: Path) -> str:
    manifest = bytes(published.read(MANIFEST_NAME))
    return verify_signature(manifest, bytes(published.read(SIGNATURE_NAME)), PublicKey(public))


def test_a_published_folder_can_be_signed_later(published: Store, keys: Any) -> None:
    assert sign(published, KeySigner(keys.private))
    verify_published(published)  # the signature is no stranger
    assert check(published, keys.public).startswith("key ")
    first = published.read(SIGNATURE_NAME)
    assert not sign(published, KeySigner(keys.private))
    assert published.read(SIGNATURE_NAME) == first


def test_model_signing_itself_accepts_the_signature(
    make_run: Fixture, publish_run: Fixture, keys: Any, tmp_path: Path
) -> None:
    from model_signing import verifying

    published = publish_run(make_run(), str(tmp_path / "published"))
    sign(published, KeySigner(keys.private))
    folder = Path(published.address)

    def verify() -> None:
        config = verifying.Config().use_elliptic_key_verifier(public_key=keys.public)
        config.verify(folder, folder / SIGNATURE_NAME)

    verify()
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"Hash mismatch for .*model\.safetensors"):
        verify()


def test_signing_reads_no_weights(
    make_run: Fixture, publish_run: Fixture, keys: Any, s3_address: str, proxy: Any
) -> None:
    weights = {"model.safetensors": bytes(5_000_000), "vllm_config.json": b"{}"}
    published = publish_run(make_run(weights=weights), s3_address)
    proxy.requests.clear()
    sign(published, KeySigner(keys.private))
    assert proxy.received("safetensors") == 0
    assert proxy.received() < 50_000


def test_publishing_signs_where_a_key_is_configured(
    make_run: Fixture,
    publish_run: Fixture,
    make_keys: Fixture,
    destination: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = make_keys(password="correct horse")
    run = make_run()
    monkeypatch.setenv("QUANTLIB_SIGNING_KEY", str(keys.private))
    monkeypatch.setenv("QUANTLIB_SIGNING_PASSWORD", "correct horse")
    published = publish_run(run, destination)
    check(published, keys.public)
    first = published.read(SIGNATURE_NAME)
    publish_run(run, destination)
    assert published.read(SIGNATURE_NAME) == first


def test_publishing_again_signs_what_was_published_unsigned(
    make_run: Fixture, publish_run: Fixture, keys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    run = make_run()
    published = publish_run(run, str(tmp_path / "published"))
    assert not published.exists(SIGNATURE_NAME)
    monkeypatch.setenv("QUANTLIB_SIGNING_KEY", str(keys.private))
    publish_run(run, str(tmp_path / "published"))
    check(published, keys.public)


def test_the_manifest_is_written_after_the_signature(
    make_run: Fixture, publish_run: Fixture, keys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    run, destination = make_run(), str(tmp_path / "published")
    monkeypatch.setenv("QUANTLIB_SIGNING_KEY", str(keys.private))

    def crash(*_: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put_new", crash)
        with pytest.raises(KeyboardInterrupt):
            publish_run(run, destination)
    assert list((tmp_path / "published").rglob(SIGNATURE_NAME))
    assert not list((tmp_path / "published").rglob(MANIFEST_NAME))
    published = publish_run(run, destination)
    check(published, keys.public)


def test_a_signature_of_a_killed_run_does_not_stay_with_an_unsigned_checkpoint(
    make_run: Fixture, publish_run: Fixture, keys: Any, published: Store, destination: str
) -> None:
    sign(published, KeySigner(keys.private))
    published.delete(MANIFEST_NAME)
    publish_run(make_run(), destination)
    assert not published.exists(SIGNATURE_NAME)
    verify_published(published)


def test_a_signature_of_the_same_key_for_another_manifest_is_made_again(
    published: Store, keys: Any
) -> None:
    manifest = json.loads(bytes(published.read(MANIFEST_NAME)))
    manifest["name"] = "other"
    other = sign_manifest(json.dumps(manifest).encode(), KeySigner(keys.private))
    published.put_bytes(other, SIGNATURE_NAME)
    with pytest.raises(SignatureError, match=r"covers other content of manifest\.json$"):
        check(published, keys.public)
    assert sign(published, KeySigner(keys.private))
    check(published, keys.public)


@pytest.mark.parametrize("content", [None, b"{}", b"no json", b'{"verificationMaterial": 1}'])
def test_another_signature_is_replaced_on_demand_only(
    published: Store, keys: Any, make_keys: Fixture, content: bytes | None
) -> None:
    if content is None:
        sign(published, KeySigner(make_keys("other").private))
    else:
        published.put_bytes(content, SIGNATURE_NAME)
    with pytest.raises(InvalidInputError, match=r"model\.sig: is somebody else's signature"):
        sign(published, KeySigner(keys.private))
    assert sign(published, KeySigner(keys.private), replace=True)
    check(published, keys.public)


def test_what_is_damaged_is_not_signed_but_written_again(published: Store, keys: Any) -> None:
    published.put_bytes(b"other", "model.safetensors")
    assert sign(published, KeySigner(keys.private))
    verify_published(published)
    check(published, keys.public)


def test_keys_that_cannot_sign_are_refused_before_anything_is_copied(
    make_run: Fixture, publish_run: Fixture, make_keys: Fixture, tmp_path: Path, monkeypatch: Any
) -> None:
    encrypted, plain = make_keys("encrypted", password="secret"), make_keys("plain")
    other_curve, other_kind, text = (tmp_path / name for name in ("k1", "rsa", "text"))
    kinds = {
        other_curve: ec.generate_private_key(ec.SECP256K1()),
        other_kind: rsa.generate_private_key(65537, 2048),
    }
    for path, key in kinds.items():
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(pem)
    text.write_text("key")
    for key, password, what in (
        (tmp_path / "none", "", "cannot be read: No such file"),
        (text, "", "is no such key in PEM"),
        (other_curve, "", "is of a kind that does not sign"),
        (other_kind, "", "is of a kind that does not sign"),
        (encrypted.private, "", "is encrypted; set QUANTLIB_SIGNING_PASSWORD"),
        (encrypted.private, "wrong", "or its password is another"),
        (plain.private, "needless", "is not encrypted; leave out"),
    ):
        monkeypatch.setenv("QUANTLIB_SIGNING_KEY", str(key))
        monkeypatch.setenv("QUANTLIB_SIGNING_PASSWORD", password)
        with pytest.raises(InvalidInputError, match=what) as caught:
            publish_run(make_run(), str(tmp_path / "published"))
        assert "secret" not in str(caught.value) and "wrong" not in str(caught.value)
    assert not (tmp_path / "published").exists()


def test_the_environment_configures_one_signer_or_none(
    keys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    assert signer_from_environment() is None
    monkeypatch.setenv("QUANTLIB_SIGNING", "always")
    with pytest.raises(InvalidInputError, match="is 'always'"):
        signer_from_environment()
    monkeypatch.setenv("QUANTLIB_SIGNING", "keyless")
    monkeypatch.setenv("QUANTLIB_SIGNING_TOKEN", str(tmp_path / "none"))
    with pytest.raises(InvalidInputError, match=r"identity token .* cannot be read"):
        signer_from_environment()
    monkeypatch.setenv("QUANTLIB_SIGNING_KEY", str(keys.private))
    with pytest.raises(InvalidInputError, match="are both set"):
        signer_from_environment()


def test_without_an_identity_token_nobody_waits_for_a_browser(monkeypatch: Any) -> None:
    monkeypatch.setenv("QUANTLIB_SIGNING", "keyless")
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: None)
    with pytest.raises(InvalidInputError, match="there is no identity token"):
        signer_from_environment()


def test_keyless_signing_hands_on_the_workloads_token(
    make_run: Fixture, publish_run: Fixture, keys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Sigstore's servers are out of reach here, so a key stands in for their certificate."""
    from model_signing import signing

    tokens = []

    def stand_in(config: Any, *, identity_token: str) -> None:
        tokens.append(identity_token)
        config.use_elliptic_key_signer(private_key=keys.private)

    monkeypatch.setattr(signing.Config, "use_sigstore_signer", stand_in)
    (tmp_path / "token").write_text("a.b.c\n")
    monkeypatch.setenv("QUANTLIB_SIGNING", "keyless")
    monkeypatch.setenv("QUANTLIB_SIGNING_TOKEN", str(tmp_path / "token"))
    run = make_run()
    published = publish_run(run, str(tmp_path / "published"))
    publish_run(run, str(tmp_path / "published"))
    assert tokens == ["a.b.c"]
    check(published, keys.public)


def test_without_the_library_the_error_says_what_to_install(
    published: Store, keys: Any, monkeypatch: Any
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "model_signing.signing", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'quantlib-llm\[signing\]'"):
        sign(published, KeySigner(keys.private))
