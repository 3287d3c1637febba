"""Signs a published checkpoint in OpenSSF's model signing format, from the digests in its manifest.

The signature is a Sigstore bundle over the sha256 of every file, the manifest among them, so no
file is read to sign it, wherever it lies. ``model_signing verify`` accepts it too. Why it is made
so is told in docs/decisions/0005-signing.md.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.publishing.keys import (
    PASSWORD_VARIABLE,
    load_private_key,
    load_public_key,
    public_pem,
)
from quantlib.report.manifest import MANIFEST_NAME, SIGNATURE_NAME, parse_manifest
from quantlib.runtime.distribution import pip_install
from quantlib.runtime.foreign_json import parse_mapping

KEY_VARIABLE = "QUANTLIB_SIGNING_KEY"
"""Environment variable: path of an elliptic curve private key in PEM."""
MODE_VARIABLE = "QUANTLIB_SIGNING"
"""Environment variable: ``keyless`` signs with the workload's identity."""
TOKEN_VARIABLE = "QUANTLIB_SIGNING_TOKEN"
"""Environment variable: path of an OIDC token for the audience ``sigstore``, for keyless signing;
without it the surroundings are asked, as CI systems and clouds provide."""


@dataclass(frozen=True)
class KeySigner:
    """Signs with an elliptic curve private key: P-256, P-384 or P-521."""

    path: Path
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class KeylessSigner:
    """Signs with a short-lived certificate for an OIDC identity, which Sigstore logs.

    Attributes:
        token: File of the identity token; None to ask the surroundings for it.
    """

    token: Path | None = None


Signer = KeySigner | KeylessSigner


@dataclass(frozen=True)
class PublicKey:
    """Accepts signatures by the private key that belongs to a public key in PEM."""

    path: Path


@dataclass(frozen=True)
class Identity:
    """Accepts keyless signatures of one identity, as one OIDC issuer knows it."""

    name: str
    issuer: str


Trusted = PublicKey | Identity


class SignatureError(QuantlibError):
    """A signature does not hold."""


def signer_from_environment() -> Signer | None:
    """The signer that the environment configures; None where it configures none.

    Raises:
        InvalidInputError: It configures two, or one that cannot sign.
    """
    key, mode = os.environ.get(KEY_VARIABLE), os.environ.get(MODE_VARIABLE)
    if mode not in (None, "", "keyless"):
        raise InvalidInputError.one(MODE_VARIABLE, f"is {mode!r}", "set it to keyless, or to none")
    if key and mode:
        raise InvalidInputError.one(
            f"{KEY_VARIABLE} and {MODE_VARIABLE}", "are both set", "leave one of them out"
        )
    signer: Signer | None = None
    if key:
        signer = KeySigner(Path(key), os.environ.get(PASSWORD_VARIABLE) or None)
    elif mode:
        token = os.environ.get(TOKEN_VARIABLE)
        signer = KeylessSigner(Path(token) if token else None)
    if signer is not None:
        require_usable(signer)
    return signer


def require_usable(signer: Signer) -> None:
    """Checks that a signer can sign, as far as that can be told before.

    Raises:
        InvalidInputError: The key or token cannot be read, or model-signing is not installed.
    """
    _library("signing")
    if isinstance(signer, KeySigner):
        _public_pem(signer)
    else:
        _token(signer)


def require_checkable(trusted: Trusted) -> None:
    """Checks that signatures can be checked, as far as that can be told before.

    Raises:
        InvalidInputError: The public key cannot be read, or model-signing is not installed.
    """
    _library("verifying")
    if isinstance(trusted, PublicKey):
        fingerprint(trusted.path)


def sign_manifest(manifest: bytes, signer: Signer) -> bytes:
    """The signature over a manifest's bytes and all files that it lists.

    Args:
        manifest: Content of ``manifest.json``.
        signer: Who signs.

    Raises:
        InvalidInputError: The signer cannot sign, or the manifest is no valid one.
        QuantlibError: Signing failed.
    """
    name, digests = _signed_content(manifest)
    config = _library("signing").Config().set_hashing_config(_given_digests(name, digests))
    with TemporaryDirectory() as folder:
        signature = Path(folder) / SIGNATURE_NAME
        try:
            if isinstance(signer, KeySigner):
                # The library hands the password on to cryptography, which takes bytes.
                password = signer.password.encode() if signer.password else None
                config.use_elliptic_key_signer(private_key=signer.path, password=password)
            else:
                config.use_sigstore_signer(identity_token=_token(signer))
            config.sign(name, signature)
        except InvalidInputError:
            raise
        except Exception as error:  # keys, tokens and servers fail in many ways
            raise QuantlibError(f"{name}: could not be signed: {error}") from error
        return signature.read_bytes()


def verify_signature(manifest: bytes, signature: bytes, trusted: Trusted) -> str:
    """Checks a signature over a manifest's bytes and all files that it lists.

    Args:
        manifest: Content of ``manifest.json``.
        signature: Content of ``model.sig``.
        trusted: Whose signature is accepted.

    Returns:
        Who signed, for people.

    Raises:
        SignatureError: It does not hold.
        InvalidInputError: The public key cannot be read, or the manifest is no valid one.
        QuantlibError: Sigstore's servers cannot be reached.
    """
    name, digests = _signed_content(manifest)
    config = _library("verifying").Config().set_hashing_config(_given_digests(name, digests))
    if isinstance(trusted, PublicKey):
        who = f"key {fingerprint(trusted.path)}"
    else:
        who = f"{trusted.name} ({trusted.issuer})"
    try:
        if isinstance(trusted, PublicKey):
            config.use_elliptic_key_verifier(public_key=trusted.path)
        else:
            config.use_sigstore_verifier(identity=trusted.name, oidc_issuer=trusted.issuer)
    except Exception as error:  # Sigstore's root of trust is fetched here
        raise QuantlibError(f"signatures of {who} cannot be checked: {error}") from error
    with TemporaryDirectory() as folder:
        path = Path(folder) / SIGNATURE_NAME
        path.write_bytes(signature)
        try:
            config.verify(name, path)
        except Exception as error:  # a file from elsewhere breaks its reader in many ways
            what = str(error) or type(error).__name__
            if what.startswith("Signature mismatch"):  # and lists digests as Python shows bytes
                what = f"it covers other content of {_differing(signature, digests)}"
            raise SignatureError(f"is no signature of {who}: {what[:300]}") from error
    return who


def fingerprint(public_key: Path) -> str:
    """The sha256 of a public key's PEM, by which a signature names the key that made it.

    Args:
        public_key: File of the key.

    Raises:
        InvalidInputError: It is no public key that signatures can be checked with.
    """
    return hashlib.sha256(public_pem(load_public_key(public_key))).hexdigest()


def signature_state(manifest: bytes, signature: bytes, signer: Signer) -> str:
    """Whether a signature is the signer's for this manifest, for another, or somebody else's.

    Returns:
        ``current``, ``outdated`` or ``foreign``.

    Whose a keyless signature will be is known when it is made, so any that covers the manifest
    stands.
    """
    covers = _resources(signature) == _signed_content(manifest)[1]
    if isinstance(signer, KeylessSigner):
        return "current" if covers else "foreign"
    pem = _public_pem(signer)
    if _key_hint(signature) != hashlib.sha256(pem).hexdigest():
        return "foreign"
    with TemporaryDirectory() as folder:
        public = Path(folder) / "key.pub"
        public.write_bytes(pem)
        try:
            verify_signature(manifest, signature, PublicKey(public))
        except SignatureError:
            return "outdated"
    return "current"


def _signed_content(manifest: bytes) -> tuple[str, dict[str, str]]:
    """A name for what is signed, and the sha256 of every file by path."""
    parsed = parse_manifest(manifest, MANIFEST_NAME)
    digests = {name: record.sha256 for name, record in parsed.files.items()}
    digests[MANIFEST_NAME] = hashlib.sha256(manifest).hexdigest()
    return parsed.checkpoint.removeprefix("sha256:"), digests


def _given_digests(name: str, digests: Mapping[str, str]) -> Any:
    """A hashing configuration of model-signing that answers with digests instead of reading."""
    library, engine = _library("manifest"), _library("_hashing.hashing")
    serialization = library.SerializationType.from_args(
        {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": [SIGNATURE_NAME],
        }
    )
    items = [
        serialization.new_item(path, engine.Digest("sha256", bytes.fromhex(digest)))
        for path, digest in digests.items()
    ]

    class Given(_library("hashing").Config):  # type: ignore[misc]  # imported when it is used
        def hash(self, *_: Any, **__: Any) -> Any:
            return library.Manifest(name, items, serialization)

    return Given()


def _resources(signature: bytes) -> dict[str, str] | None:
    """What a signature says it covers, unchecked; None where that cannot be read."""
    try:
        bundle = parse_mapping(signature, SIGNATURE_NAME)
        statement = parse_mapping(
            base64.b64decode(bundle["dsseEnvelope"]["payload"]), SIGNATURE_NAME
        )
        return {entry["name"]: entry["digest"] for entry in statement["predicate"]["resources"]}
    except (InvalidInputError, ValueError, KeyError, TypeError):
        return None


def _differing(signature: bytes, digests: Mapping[str, str]) -> str:
    covered = _resources(signature) or {}
    names = sorted({name for name, _ in covered.items() ^ digests.items()})
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _key_hint(signature: bytes) -> str | None:
    try:
        material = parse_mapping(signature, SIGNATURE_NAME)["verificationMaterial"]
        return material["publicKey"]["hint"]
    except (InvalidInputError, KeyError, TypeError):
        return None


def _token(signer: KeylessSigner) -> str:
    if signer.token is not None:
        try:
            return signer.token.read_text().strip()
        except OSError as error:
            raise InvalidInputError.one(
                f"identity token {signer.token}", f"cannot be read: {error.strerror}"
            ) from None
    # Without a token the library would wait for a person at a browser.
    found = import_module("sigstore.oidc").detect_credential()
    if not found:
        raise InvalidInputError.one(
            "keyless signing",
            "there is no identity token",
            f"set {TOKEN_VARIABLE} to the path of one for the audience sigstore",
        )
    return found


def _public_pem(signer: KeySigner) -> bytes:
    return public_pem(load_private_key(signer.path, signer.password).public_key())


def _library(module: str) -> ModuleType:
    try:
        return import_module(f"model_signing.{module}")
    except ModuleNotFoundError as error:
        raise InvalidInputError.one(
            "signatures", f"{error.name} is not installed", pip_install("signing")
        ) from None
