"""Which code this is, so that a pipeline runs in images of the code that it was compiled from."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

from quantlib import __version__
from quantlib.errors import InvalidInputError

CODE_VARIABLE = "QUANTLIB_CODE"
"""Environment variable of a step: the :func:`code_version` of the compiler."""


def code_version() -> str:
    """The version and the first digits of :func:`code_digest`: ``0.1.0+3f9a1c2b4d5e``."""
    return f"{__version__}+{code_digest()[:12]}"


@cache
def code_digest() -> str:
    """A hexadecimal sha256 over the names and the contents of this package's files."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content = hashlib.sha256(path.read_bytes()).digest()
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()


def require_same_code() -> None:
    """Checks that the pipeline that started this step was compiled from this code.

    Raises:
        InvalidInputError: It was compiled from other code.
    """
    compiled_from = os.environ.get(CODE_VARIABLE)
    if compiled_from and compiled_from != code_version():
        raise InvalidInputError.one(
            "pipeline",
            f"was compiled from quantlib {compiled_from}, but this image holds {code_version()}",
            "compile it again, or set the images that belong to it",
        )
