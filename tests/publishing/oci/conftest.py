"""A real registry, a repository in it for each test, and a run to publish there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oci_registry import oci_registry

from quantlib.publishing.oci import client
from quantlib.steps.publish import publish

BIG = "model-00001-of-00002.safetensors"
OTHER = "model-00002-of-00002.safetensors"
WEIGHTS = {
    BIG: b"weights" * 300_000,
    OTHER: b"others" * 1000,
    "vllm_config.json": b'{"quantization": "gptq", "dtype": "bfloat16"}',
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with oci_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No credentials of whoever runs the tests, and no waiting."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setattr(client, "_PAUSE_SECONDS", 0.01)
    return folder


@pytest.fixture
def run(make_run: Callable[..., Any]) -> Any:
    return make_run(weights=WEIGHTS)


@pytest.fixture
def repository(registry: str, tmp_path: Path) -> str:
    """A repository of the test's own."""
    return f"{registry}/team/{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"


@pytest.fixture
def publish_image(run: Any, repository: str) -> Callable[..., str]:
    """Publishes the run as an image of the repository; its address."""

    def publish_to(destination: str = "", changed: Any = None, **arguments: Any) -> str:
        made, place = changed or run, destination or f"oci://{repository}"
        _, address = publish(
            made.store, made.recipe, place, made.checkpoint, made.validation, **arguments
        )
        return address

    return publish_to
