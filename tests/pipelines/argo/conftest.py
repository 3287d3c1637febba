"""The workflows as Argo takes them, by way of a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.argo.compiling import write_workflow_template
from pipelines.compiling import CompileOptions, prepare
from pipelines.graph import GRAPHS

PROFILE = """
accelerator:
  type: example.com/gpu
  node_selector: {pool: a}
  affinity: [{key: zone, values: [z]}]
  tolerations: [{key: gpu}]
scratch: {size: 9Gi, storage_class: fast}
signing_secret: signing
notify_secret: hooks
retries: {count: 2, delay: 5, factor: 3, limit: 900}
user: 7
steps:
  validate: {gpus: 2, cpu_limit: "4"}
"""
"""A profile that asks for everything that one can ask for."""


@pytest.fixture(scope="session")
def template_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, Any]]:
    """The template of a workflow for a profile that ships, or for that of this file: ``own``."""

    @cache
    def compile_it(graph: str, cluster: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("argo")
        if cluster == "own":
            (folder / "profile.yaml").write_text(PROFILE)
            cluster = str(folder / "profile.yaml")
        file: Path = folder / "new" / "workflow.yaml"
        compilation = prepare(GRAPHS[graph], CompileOptions(cluster))
        write_workflow_template(compilation, file, namespace="default")
        return yaml.safe_load(file.read_text(encoding="utf-8"))

    return compile_it
