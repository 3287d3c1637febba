"""Builds, pushes and describes the container images; needs docker with BuildKit, and no package.

    python scripts/images.py build --torch cpu
    python scripts/images.py push --registry registry.example/team
    python scripts/images.py sbom

``build`` and ``push`` write build/images.lock.json, which names every image as well as can be: by
digest once they have been pushed, and by their tag before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "build" / "images.lock.json"
IMAGES = {
    "quantlib": "quantlib",
    "validate": "quantlib-validate",
    "tasks": "quantlib-tasks",
    "watch": "quantlib-watch",
}
"""Names of the images, by their target in the Dockerfile."""


def version() -> str:
    """The version of quantlib."""
    text = (ROOT / "quantlib" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)
    assert found, "quantlib/__init__.py names no version"
    return found[1]


def revision() -> str:
    """The commit that the images are built from, ``-dirty`` where files differ from it."""
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    return f"{commit}-dirty" if _output("git", "status", "--porcelain") else commit


def names(registry: str, image: str) -> tuple[str, str]:
    """The image's names: by revision, and by version."""
    repository = f"{registry.rstrip('/')}/{IMAGES[image]}" if registry else IMAGES[image]
    return f"{repository}:{revision()}", f"{repository}:{version()}"


def build(arguments: argparse.Namespace) -> None:
    """Builds and tags every image."""
    for image in IMAGES:
        command = [arguments.docker, "build"]
        command += ["--file", "images/Dockerfile", "--target", image]
        for name, value in _build_arguments(arguments):
            if value:
                command += ["--build-arg", f"{name}={value}"]
        for name in names(arguments.registry, image):
            command += ["--tag", name]
        _run(*command, ".")
    _write_lock({image: names(arguments.registry, image)[0] for image in IMAGES})


def _build_arguments(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    yield "BASE_IMAGE", arguments.base_image
    yield "WHEELS", arguments.wheels
    yield "TORCH", arguments.torch
    yield "TORCH_INDEX", arguments.torch_index
    yield "VERSION", version()
    yield "REVISION", revision()


def push(arguments: argparse.Namespace) -> None:
    """Pushes every tag of every image."""
    if not arguments.registry:
        sys.exit("push needs a registry: make push-images REGISTRY=registry.example/team")
    if revision().endswith("-dirty"):
        sys.exit("files differ from the commit: commit them, so that the images can be traced")
    locked = {}
    for image in IMAGES:
        tags = names(arguments.registry, image)
        for name in tags:
            _run(arguments.docker, "push", name)
        inspected = _output(
            arguments.docker, "image", "inspect", "--format", "{{json .RepoDigests}}", tags[0]
        )
        repository = tags[0].rpartition(":")[0]
        (locked[image],) = (
            digest for digest in json.loads(inspected) if digest.startswith(f"{repository}@")
        )
    _write_lock(locked)


def sbom(arguments: argparse.Namespace) -> None:
    """Writes what is in each image that the lock names, as CycloneDX, by syft."""
    if not LOCK.exists():
        sys.exit(f"{LOCK.relative_to(ROOT)} is missing: make images")
    folder = LOCK.parent / "sbom"
    folder.mkdir(exist_ok=True)
    for image, name in json.loads(LOCK.read_text(encoding="utf-8")).items():
        path = folder / f"{image}.cdx.json"
        _run(arguments.syft, "scan", f"docker:{name}", "--output", f"cyclonedx-json={path}")
        print(path.relative_to(ROOT))


def _write_lock(images: dict[str, str]) -> None:
    LOCK.parent.mkdir(exist_ok=True)
    LOCK.write_text(json.dumps(images, indent=1) + "\n", encoding="utf-8")
    for image in images.values():
        print(image)
    print(f"wrote {LOCK.relative_to(ROOT)}")


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def _run(*command: str) -> None:
    # Clients before 23 have BuildKit, but use it only when told.
    environment = os.environ | {"DOCKER_BUILDKIT": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def main() -> int:
    """Does what is asked for; the exit code of docker where it fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = {"build": build, "push": push, "sbom": sbom}
    parser.add_argument("action", choices=actions)
    parser.add_argument("--docker", default="docker", help="docker's client")
    parser.add_argument("--syft", default="syft", help="the program that lists what is in an image")
    parser.add_argument("--registry", default="", help="registry.example/team; none: local names")
    parser.add_argument("--base-image", default="", help="of the images, best by digest")
    parser.add_argument("--torch", default="cuda", choices=("cuda", "cpu"), help="what vLLM is for")
    parser.add_argument(
        "--torch-index", default="", help="package index with torch for CPUs; PyPI's runs there too"
    )
    parser.add_argument(
        "--wheels", default="", help="image whose root holds torch and torchvision for CPUs"
    )
    arguments = parser.parse_args()
    try:
        actions[arguments.action](arguments)
    except OSError as error:
        sys.exit(f"{error.filename} cannot be started: {error.strerror}")
    except subprocess.CalledProcessError as error:
        print(f"failed: {' '.join(error.cmd)}", file=sys.stderr)
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
