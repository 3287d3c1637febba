"""Published checkpoints, and a repository that says what is served."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from report.conftest import WEIGHTS, commit_run

from quantlib.publishing import folder
from quantlib.steps.publish import publish

SERVE = {"quantization": "gptq", "dtype": "bfloat16"}

MakePublished = Callable[..., Path]


@pytest.fixture
def make_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePublished:
    """Publishes a made-up checkpoint; ``seed`` decides its digest, ``day`` its date."""

    def make(seed: str = "one", day: int = 0, **files: bytes) -> Path:
        weights = WEIGHTS | {
            "weights.safetensors": seed.encode(),
            "vllm_config.json": json.dumps(SERVE).encode(),
            **{name.replace("__", "."): data for name, data in files.items()},
        }
        run = commit_run(tmp_path / f"run-{seed}", weights=weights)
        destination = str(tmp_path / "published")
        when = datetime.fromisoformat("2026-11-01T00:00:00+00:00") + timedelta(days=day)
        with monkeypatch.context() as patch:
            patch.setattr(folder, "now", lambda: when)
            _, address = publish(run.store, run.recipe, destination, run.checkpoint, run.validation)
        return Path(address)

    return make


@dataclass(frozen=True)
class Repository:
    """A bare repository, and a working copy of it."""

    remote: Path
    copy: Path

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.copy, check=True, capture_output=True, text=True
        ).stdout

    def commit(self, message: str = "Change") -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        self.git("push", "--quiet", "origin", "HEAD")

    def read(self, branch: str, path: str) -> str:
        self.git("fetch", "--quiet", "origin")
        return self.git("show", f"origin/{branch}:{path}")

    def branches(self) -> list[str]:
        listed = self.git("ls-remote", "--heads", "origin")
        return [line.partition("refs/heads/")[2] for line in listed.splitlines()]


INFERENCE_SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: tiny
spec:
  predictor:
    minReplicas: 2
    model:
      modelFormat: {name: vLLM}
      image: vllm/vllm-openai:v0.32.0
      storageUri: s3://models/by-hand/
      args: [--gpu-memory-utilization, "0.9", --max-model-len=512]
      resources: {limits: {nvidia.com/gpu: "1"}}
"""
LLM_INFERENCE_SERVICE = """\
apiVersion: serving.kserve.io/v1alpha2
kind: LLMInferenceService
metadata:
  name: tiny
spec:
  model: {uri: s3://models/by-hand/, name: tiny}
  template:
    containers:
    - name: main
      image: vllm/vllm-openai:v0.32.0
      env:
      - {name: HF_HUB_OFFLINE, value: "1"}
      - {name: VLLM_ADDITIONAL_ARGS, value: --gpu-memory-utilization 0.9 --max-model-len=512}
"""
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: tiny
spec:
  selector: {matchLabels: {app: tiny}}
  template:
    metadata: {labels: {app: tiny}}
    spec:
      containers:
      - name: proxy
        image: example.org/proxy:1
      - name: vllm
        image: vllm/vllm-openai:v0.32.0
        args: [s3://models/by-hand/, --gpu-memory-utilization, "0.9", --max-model-len=512]
"""
SERVICES = {
    "InferenceService": INFERENCE_SERVICE,
    "LLMInferenceService": LLM_INFERENCE_SERVICE,
    "Deployment": DEPLOYMENT,
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A base with an InferenceService, and an overlay with comments."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    remote, copy = tmp_path / "remote.git", tmp_path / "copy"
    for command in (
        ["init", "--quiet", "--bare", "--initial-branch", "main", str(remote)],
        ["clone", "--quiet", str(remote), str(copy)],
    ):
        subprocess.run(["git", *command], check=True, capture_output=True)
    for path, text in {
        "base/kustomization.yaml": "resources:\n- service.yaml\n",
        "base/service.yaml": INFERENCE_SERVICE,
        "overlays/production/kustomization.yaml": "# Ours.\nnamespace: serving\n"
        "resources:\n- ../../base\npatches:\n# More replicas.\n- path: replicas.yaml\n"
        "labels:\n- pairs: {team: platform}\n",
        "overlays/production/replicas.yaml": "apiVersion: serving.kserve.io/v1beta1\n"
        "kind: InferenceService\nmetadata: {name: tiny}\n"
        "spec: {predictor: {minReplicas: 3}}\n",
    }.items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_text(text)
    made = Repository(remote, copy)
    made.git("checkout", "--quiet", "-B", "main")
    made.commit("Serve by hand")
    return made
