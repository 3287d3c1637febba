"""What this project is installed by, for those who are asked to install a part of it."""

from __future__ import annotations

DISTRIBUTION = "quantlib-llm"
"""The name to install by; ``quantlib`` on PyPI is a finance library."""


def pip_install(extra: str) -> str:
    """The command that installs what an extra of pyproject.toml stands for.

    >>> pip_install("s3")
    "pip install 'quantlib-llm[s3]'"
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'"
