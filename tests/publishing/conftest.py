"""Published checkpoints, in a folder and on a real S3 server, and keys to sign them with."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from published_runs import RUNS

from quantlib.steps.publish import publish
from quantlib.store import Store, open_store

WEIGHTS = {
    "model.safetensors": b"weights" * 10_000,
    "vllm_config.json": b'{"quantization": "gptq", "dtype": "bfloat16"}',
}


def _commit_run(root: Path, **changes: Any) -> Any:
    """The made-up run of the report's tests."""
    name = "report_runs"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "report" / "conftest.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name].commit_run(root, **{"weights": WEIGHTS} | changes)


@dataclass(frozen=True)
class Keys:
    """A pair of keys."""

    private: Path
    public: Path


@pytest.fixture
def make_keys(tmp_path: Path) -> Callable[..., Keys]:
    """Makes a pair of keys."""

    def make(name: str = "release", password: str | None = None) -> Keys:
        key = ec.generate_private_key(ec.SECP256R1())
        encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        keys = Keys(tmp_path / f"{name}.pem", tmp_path / f"{name}.pub")
        keys.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        public = key.public_key()
        keys.public.write_bytes(
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        return keys

    return make


@pytest.fixture
def keys(make_keys: Callable[..., Keys]) -> Keys:
    return make_keys()


@pytest.fixture(autouse=True)
def no_signer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the person who tests has set."""
    for name in ("KEY", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"QUANTLIB_SIGNING_{name}", raising=False)
    monkeypatch.delenv("QUANTLIB_SIGNING", raising=False)
    monkeypatch.delenv("QUANTLIB_PUBLIC_KEY", raising=False)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Any]:
    """Makes a run, with changes."""

    def make(name: str = "run", **changes: Any) -> Any:
        return _commit_run(tmp_path / name, **changes)

    return make


@pytest.fixture
def publish_run() -> Callable[[Any, str], Store]:
    """Publishes a run."""

    def run_publish(run: Any, destination: str) -> Store:
        _, address = publish(run.store, run.recipe, destination, run.checkpoint, run.validation)
        RUNS[address] = run
        return open_store(address)

    return run_publish


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where to publish to."""
    if request.param == "folder":
        return str(tmp_path / "published")
    return request.getfixturevalue("s3_address")


@pytest.fixture
def published(make_run: Any, publish_run: Any, destination: str) -> Store:
    """A published checkpoint that nobody signed."""
    return publish_run(make_run(), destination)
