"""What this project is installed by, for those who are asked to install a part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quantlib.errors import QuantlibError

DISTRIBUTION = "quantlib-llm"
"""The name to install by; ``quantlib`` on PyPI is a finance library."""


def pip_install(extra: str) -> str:
    """The command that installs what an extra of pyproject.toml stands for.

    >>> pip_install("s3")
    "pip install 'quantlib-llm[s3]'"
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'"


@contextmanager
def needing(extra: str, *packages: str) -> Iterator[None]:
    """Imports within it may miss packages that an extra brings.

    Raises:
        QuantlibError: One of ``packages`` is not installed; it says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in packages:
            raise
        raise QuantlibError(f"{error.name} is not installed; {pip_install(extra)}") from None
