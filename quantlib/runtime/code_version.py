"""Which code this is: quantlib's own, and that of the packages that extend it."""

from __future__ import annotations

import hashlib
import os
import sys
from functools import cache
from importlib.metadata import distributions, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from quantlib import __version__
from quantlib.errors import InvalidInputError
from quantlib.registry import Registry

CODE_VARIABLE = "QUANTLIB_CODE"
"""Environment variable of a step: the :func:`code_version` of the compiler."""


def code_version() -> str:
    """The version and the first digits of :func:`code_digest`: ``0.1.0+3f9a1c2b4d5e``."""
    return f"{__version__}+{code_digest()[:12]}"


@cache
def code_digest() -> str:
    """A hexadecimal sha256 over the names and the contents of this package's files."""
    return _digest_of_folder(Path(__file__).parents[1])


def code_versions() -> dict[str, str]:
    """The version and digest of quantlib and of every package that adds parts to it, by name.

    An extension is a package with an entry point in one of quantlib's groups, or a module whose
    classes were registered in this process.
    """
    names = {part.__module__.partition(".")[0] for part in Registry.registered()}
    names |= _packages_with_parts()
    own = __name__.partition(".")[0]
    versions = {name: _extension_version(name) for name in sorted(names - {own})}
    return {own: f"{__version__}+{code_digest()}"} | versions


@cache
def _packages_with_parts() -> frozenset[str]:
    return frozenset(
        entry_point.value.partition(":")[0].partition(".")[0]
        for distribution in distributions()
        for entry_point in distribution.entry_points
        if entry_point.group.startswith("quantlib.")
    )


@cache
def _extension_version(name: str) -> str:
    """The version of a top-level package or module, if it is installed, and its digest."""
    distributions = packages_distributions().get(name, ())
    installed = "".join(f"{version(distribution)}+" for distribution in sorted(distributions))
    return installed + _digest_of_module(name)


def _digest_of_module(name: str) -> str:
    module = sys.modules.get(name)
    if name == "__main__" or module is None:
        spec = None if name == "__main__" else find_spec(name)
        origin = getattr(module, "__file__", None) if spec is None else spec.origin
        folders = [] if spec is None else list(spec.submodule_search_locations or ())
    else:
        origin, folders = getattr(module, "__file__", None), list(getattr(module, "__path__", ()))
    if folders:
        digests = sorted(_digest_of_folder(Path(folder)) for folder in folders)
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    if origin and Path(origin).is_file():
        return hashlib.sha256(Path(origin).read_bytes()).hexdigest()
    # A module without a file: one of Python's own, or one that was typed in.
    return hashlib.sha256(f"{name} {sys.version}".encode()).hexdigest()


def _digest_of_folder(root: Path) -> str:
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
