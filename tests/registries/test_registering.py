"""What registries are told when a checkpoint is published, and that none of them can stop it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_registry import model_registry
from ports import free_ports

from quantlib.steps.publish import publish
from quantlib.telemetry.settings import environment_problems


@pytest.fixture
def publish_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Any, str]]:
    """Publishes the made-up run of the report's tests."""
    for name in ("MODEL_REGISTRY", "MLFLOW", "MODEL_REGISTRY_TOKEN"):
        monkeypatch.delenv(f"QUANTLIB_{name}", raising=False)
    path = Path(__file__).parents[1] / "report" / "conftest.py"
    spec = importlib.util.spec_from_file_location("report_runs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    run = module.commit_run(tmp_path / "run")

    def publishing() -> tuple[Any, str]:
        destination = str(tmp_path / "published")
        return publish(run.store, run.recipe, destination, run.checkpoint, run.validation)

    return publishing


def test_what_is_published_is_entered(publish_run, monkeypatch, capsys) -> None:
    with model_registry() as registry:
        monkeypatch.setenv("QUANTLIB_MODEL_REGISTRY", registry.url)
        monkeypatch.setenv("QUANTLIB_MODEL_REGISTRY_TOKEN", "secret")
        receipt, address = publish_run()
    [version], [artifact] = registry.versions, registry.artifacts
    properties = version["customProperties"]
    assert properties["digest"]["string_value"] == receipt.facts["checkpoint_digest"]
    assert properties["perplexity_quantized"]["double_value"] == 16.7655
    assert properties["source_repo"]["string_value"] == "example-org/Tiny-Llama-6"
    assert properties["scheme"]["string_value"] == "W4A16"
    assert artifact["uri"] == address
    assert set(registry.authorizations) == {"Bearer secret"}
    out = capsys.readouterr().out
    assert f"Model Registry {registry.url}: Tiny-Llama-6, version 1" in out
    assert "secret" not in out


def test_a_registry_that_fails_stops_no_publishing(publish_run, monkeypatch, capsys) -> None:
    [port] = free_ports(1)
    monkeypatch.setenv("QUANTLIB_MODEL_REGISTRY", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("QUANTLIB_MLFLOW", f"http://127.0.0.1:{port}")
    first = publish_run()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["warning", "warning"]
    assert "Model Registry" in lines[0]
    assert "MLflow" in lines[1]
    assert all("not registered: no answer (" in line for line in lines)
    assert all(line.endswith("; the next run tries again") for line in lines)

    monkeypatch.delenv("QUANTLIB_MLFLOW")
    with model_registry() as registry:
        monkeypatch.setenv("QUANTLIB_MODEL_REGISTRY", registry.url)
        assert publish_run() == first
    assert len(registry.versions) == 1


def test_an_answer_that_is_none_stops_no_publishing(publish_run, monkeypatch, capsys) -> None:
    with model_registry() as registry:
        monkeypatch.setenv("QUANTLIB_MLFLOW", registry.url)
        publish_run()
    assert "MLflow" in capsys.readouterr().err


def test_addresses_that_are_none_are_refused_before_work(monkeypatch) -> None:
    monkeypatch.setenv("QUANTLIB_MODEL_REGISTRY", "registry")
    monkeypatch.setenv("QUANTLIB_MLFLOW", "http://user:word@host")
    first, second = map(str, environment_problems())
    assert first.startswith("QUANTLIB_MODEL_REGISTRY: is no address of a server")
    assert second.startswith("QUANTLIB_MLFLOW: holds a user or a password")
