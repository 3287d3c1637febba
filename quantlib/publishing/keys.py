"""Elliptic curve keys in PEM that sign and check signatures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantlib.errors import InvalidInputError

PASSWORD_VARIABLE = "QUANTLIB_SIGNING_PASSWORD"
"""Environment variable: what the private key is encrypted with, if it is."""

_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def load_private_key(path: Path, password: str | None) -> Any:
    """Reads a private key.

    Args:
        path: The file.
        password: What it is encrypted with; None where it is not.

    Raises:
        InvalidInputError: It cannot be read, or is no key that signs.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    where = f"private key {path}"
    secret = password.encode() if password else None
    try:
        key = _parsed(where, path, lambda data: load_pem_private_key(data, secret))
    except TypeError:  # a password too many or too few
        what = "is not encrypted" if password else "is encrypted"
        remedy = f"{'leave out' if password else 'set'} {PASSWORD_VARIABLE}"
        raise InvalidInputError.one(where, what, remedy) from None
    return _checked(where, key, ec.EllipticCurvePrivateKey)


def load_public_key(path: Path) -> Any:
    """Reads a public key.

    Args:
        path: The file.

    Raises:
        InvalidInputError: It cannot be read, or is no key that checks signatures.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    where = f"public key {path}"
    return _checked(where, _parsed(where, path, load_pem_public_key), ec.EllipticCurvePublicKey)


def public_pem(public_key: Any) -> bytes:
    """A public key as a PEM file holds it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _parsed(where: str, path: Path, parse: Callable[[bytes], Any]) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise InvalidInputError.one(where, f"cannot be read: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        what = "is no such key in PEM, or its password is another"
        raise InvalidInputError.one(where, what) from None


def _checked(where: str, key: Any, kind: type) -> Any:
    if not isinstance(key, kind) or key.curve.name not in _CURVES:  # type: ignore[attr-defined]  # by kind
        raise InvalidInputError.one(where, "is of a kind that does not sign", "make one on P-256")
    return key
