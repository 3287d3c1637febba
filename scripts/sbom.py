"""Writes what is in the container images, as CycloneDX JSON: build/sbom/<image>.cdx.json.

    python scripts/sbom.py [IMAGE ...]

Without a name it takes those that build/images.lock.json names. The images are asked themselves:
Python for its packages, dpkg for Debian's. Equal images give equal files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

BUILD = Path(__file__).resolve().parent.parent / "build"
FOLDER = BUILD / "sbom"
LOCK = BUILD / "images.lock.json"
_PYTHON_PACKAGES = """
import importlib.metadata, json
print(json.dumps([
    {
        "name": found.metadata["Name"],
        "version": found.version,
        "expression": found.metadata["License-Expression"],
        "classifiers": found.metadata.get_all("Classifier", []),
    }
    for found in importlib.metadata.distributions()
]))
"""
_DEBIAN_PACKAGES = (
    "dpkg-query",
    "--show",
    "--showformat",
    r"${Package}\t${Version}\t${Architecture}\n",
)


def bill_of_materials(docker: str, image: str) -> dict[str, Any]:
    """The CycloneDX document of an image."""
    inspected = json.loads(_output(docker, "image", "inspect", image))[0]
    labels = inspected["Config"]["Labels"] or {}
    components = [*_python_components(docker, image), *_debian_components(docker, image)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": inspected["Id"],
                "name": labels.get("org.opencontainers.image.title", image),
                "version": labels.get("org.opencontainers.image.version", ""),
                "properties": [
                    {"name": name, "value": value} for name, value in sorted(labels.items())
                ],
            }
        },
        "components": sorted(components, key=lambda component: component["purl"]),
    }


def _python_components(docker: str, image: str) -> Iterator[dict[str, Any]]:
    text = _output(*_container(docker, image, "python"), "-c", _PYTHON_PACKAGES)
    for package in json.loads(text):
        name, version = package["name"], package["version"]
        purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(version)}"
        component = _component(name, version, purl)
        names = [
            classifier.rpartition(" :: ")[2]
            for classifier in package["classifiers"]
            if classifier.startswith("License :: ")
        ]
        if package["expression"]:
            component["licenses"] = [{"expression": package["expression"]}]
        elif names:
            component["licenses"] = [{"license": {"name": name}} for name in names]
        yield component


def _debian_components(docker: str, image: str) -> Iterator[dict[str, Any]]:
    command, *arguments = _DEBIAN_PACKAGES
    for line in _output(*_container(docker, image, command), *arguments).splitlines():
        name, version, architecture = line.split("\t")
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}"
        yield _component(name, version, purl)


def _component(name: str, version: str, purl: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _container(docker: str, image: str, entrypoint: str) -> list[str]:
    return [
        *(docker, "run", "--rm", "--network", "none", "--read-only"),
        *("--entrypoint", entrypoint, image),
    ]


def _output(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> int:
    """Writes one file for each image; the exit code of docker where it fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*")
    parser.add_argument("--docker", default="docker", help="docker's client")
    arguments = parser.parse_args()
    if not (arguments.images or LOCK.exists()):
        sys.exit(f"{LOCK} is missing: make images")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for image in arguments.images or json.loads(LOCK.read_text(encoding="utf-8")).values():
        try:
            document = bill_of_materials(arguments.docker, image)
        except subprocess.CalledProcessError as error:
            print(f"{image}: {error.cmd[0]} failed; is the image built?", file=sys.stderr)
            return error.returncode
        path = FOLDER / f"{document['metadata']['component']['name']}.cdx.json"
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"{path}: {len(document['components'])} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
