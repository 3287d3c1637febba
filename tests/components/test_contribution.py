"""The folders are what kubeflow/pipelines-components asks of a component.

(scripts/validate_metadata/validate_metadata.py and docs/CONTRIBUTING.md there.) Whether somebody
has verified a component within a year is asked there, when it is sent.
"""

from __future__ import annotations

import importlib
import re
from datetime import UTC, datetime

import pytest
import yaml

from components.__main__ import ROOT, load_metadata
from quantlib.steps import ALL_STEP_NAMES

REQUIRED = ["name", "stability", "dependencies", "lastVerified"]
OPTIONAL = {"tags", "ci", "links"}
VERSION = re.compile(r"(==|>=|<=)?\d+\.\d+\.\d+")

pytestmark = pytest.mark.parametrize("step", ALL_STEP_NAMES)


def test_metadata(step: str) -> None:
    metadata = load_metadata(step)
    assert [name for name in metadata if name not in OPTIONAL] == REQUIRED
    assert metadata["name"] == step
    assert re.fullmatch(r"[a-z][a-z0-9_]*", step)
    assert metadata["stability"] in ("experimental", "alpha", "beta", "stable")
    assert all(isinstance(tag, str) for tag in metadata["tags"])
    assert isinstance(metadata["lastVerified"], datetime)
    assert metadata["lastVerified"] < datetime.now(UTC)


def test_dependencies(step: str) -> None:
    dependencies = load_metadata(step)["dependencies"]
    assert set(dependencies) == {"kubeflow", "external_services"}
    assert "Pipelines" in [each["name"] for each in dependencies["kubeflow"]]
    for each in (*dependencies["kubeflow"], *dependencies["external_services"]):
        assert set(each) == {"name", "version"}
        assert VERSION.fullmatch(each["version"]), each


def test_files(step: str) -> None:
    folder = ROOT / step
    for name in ("__init__.py", "component.py", "metadata.yaml", "README.md", "OWNERS"):
        assert (folder / name).is_file(), name
    assert f"({step}/README.md): " in (ROOT / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load((folder / "OWNERS").read_text(encoding="utf-8"))["approvers"]
    package = importlib.import_module(f"components.{step}")
    assert package.__all__ == [step]
    assert getattr(package, step).name == step
