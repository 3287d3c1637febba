"""The overlays as kustomize builds them, and applied to a real API server."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import kube_api
import pytest
import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
KSERVE = sorted((Path(__file__).parents[1] / "data" / "kserve-crds").glob("*runtimes.yaml.gz"))
KSERVE += [KSERVE[0].with_name("kserve-clusterstoragecontainers.yaml.gz")]
"""Definitions of the kinds that the overlays use."""
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())

Document = dict[str, Any]


@cache
def no_kustomize() -> str | None:
    """Why kustomize cannot build what we have, or None."""
    if not shutil.which("kubectl"):
        return "kubectl is not installed"
    command = ["kubectl", "version", "--client", "--output", "json"]
    version = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    # kubectl names it from 1.24 on; before, it was of another age.
    return None if "kustomizeVersion" in version else "kubectl is older than 1.24"


@pytest.fixture(params=OVERLAYS, scope="session")
def overlay(request: pytest.FixtureRequest) -> str:
    if reason := no_kustomize():
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="session")
def built(overlay: str) -> subprocess.CompletedProcess[str]:
    """What kustomize makes of an overlay."""
    command = ["kubectl", "kustomize", str(MANIFESTS / "overlays" / overlay)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0, completed.stderr
    return completed


@pytest.fixture(scope="session")
def documents(built: subprocess.CompletedProcess[str]) -> list[Document]:
    return list(yaml.safe_load_all(built.stdout))


@pytest.fixture(scope="session")
def pod_specs(documents: list[Document]) -> dict[str, Document]:
    """The pod specifications that are ours, by the name of what makes the pods."""
    return {
        document["metadata"]["name"]: document["spec"]["template"]["spec"]
        for document in documents
        if "template" in document.get("spec", {})
    }


def build_with(overlay: str, component: Path, folder: Path) -> list[Document]:
    """What kustomize makes of an overlay with a component, as docs/schedule.md adds it."""
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(MANIFESTS / "overlays" / overlay, folder)],
        "components": [os.path.relpath(component, folder)],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def find(documents: list[Document], kind: str, name: str) -> Document:
    """The one object of a kind with a name."""
    (found,) = [
        each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name
    ]
    return found


def of_kubernetes(documents: list[Document]) -> list[Document]:
    """Those of kinds that Kubernetes itself knows: KServe's are known to the API server here."""
    return [each for each in documents if not each["apiVersion"].startswith("serving.kserve.io/")]


@dataclass(frozen=True)
class Applied:
    """An overlay on a server of its own, and what the server said."""

    overlay: Path
    server: kube_api.ApiServer
    output: str


@pytest.fixture(scope="session")
def applied(overlay: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Applied]:
    if reason := kube_api.missing():
        pytest.skip(reason)
    folder = MANIFESTS / "overlays" / overlay
    with kube_api.api_server(tmp_path_factory.mktemp("kube")) as server:
        for path in KSERVE:
            server.define(yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader))
        yield Applied(folder, server, server.kubectl("apply", "-k", str(folder)).stdout)
