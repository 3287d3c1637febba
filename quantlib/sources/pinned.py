"""Addresses that say what is to be found there: ``ADDRESS#sha256:<digest>``.

The hub pins by commit. A folder, a file and a prefix in object storage can be written over between
the look that found a release and the run that fetches it; the run must not take what came since.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from quantlib.errors import StepError

_PINNED = re.compile(r"(?P<address>.+)#(?P<digest>sha256:[0-9a-f]{64})", re.DOTALL)


def pin(address: str, digest: str) -> str:
    """An address that only content of a digest is taken from."""
    return f"{address}#{digest}"


def split_pin(text: str) -> tuple[str, str | None]:
    """An address, and the digest that its content must have; None where any will do."""
    match = _PINNED.fullmatch(text)
    return (match["address"], match["digest"]) if match else (text, None)


def content_digest(files: Iterable[tuple[str, str]]) -> str:
    """``sha256:`` digest of files.

    Args:
        files: Their names and sha256.
    """
    hashed = hashlib.sha256()
    for name, digest in files:
        hashed.update(name.encode() + b"\0" + bytes.fromhex(digest))
    return "sha256:" + hashed.hexdigest()


def require_pinned(address: str, wanted: str | None, found: str) -> None:
    """Checks that what is at an address is what the address was pinned to.

    Raises:
        StepError: It is something else.
    """
    if wanted not in (None, found):
        raise StepError(
            "fetch",
            f"{address}: has changed since it was looked at ({wanted}); the next look takes what "
            "is there now",
        )
