"""Published checkpoints, and a repository that says what is served."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import kube_api
import pytest
from fake_openai import FakeOpenAI, fake_openai
from promotion.answers import answer_as_expected
from promotion.cluster import Cluster, Line, kubeconfig_through, make_namespace
from promotion.cluster import server as server  # a fixture
from promotion.driver import Promotion
from promotion.services import BY_HAND, INFERENCE_SERVICE
from report.conftest import WEIGHTS, commit_run

from quantlib.publishing import folder
from quantlib.steps.publish import publish

SERVE = {"quantization": "gptq", "dtype": "bfloat16"}

MakePublished = Callable[..., Path]
_numbers = itertools.count()


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


@pytest.fixture
def line(server: kube_api.ApiServer) -> Iterator[Line]:
    line = Line(int(server.url.rpartition(":")[2]))
    yield line
    line.close()


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        answer_as_expected(fake)
        yield fake


MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make_cluster(
    server: kube_api.ApiServer,
    line: Line,
    fake: FakeOpenAI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> MakeCluster:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    default = server
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig_through(line, server, tmp_path / "kubeconfig")))

    def make(
        kind: str = "InferenceService", server: kube_api.ApiServer = server, **attributes: Any
    ) -> Cluster:
        name = f"serving-{next(_numbers)}"
        cluster = make_namespace(server, name, kind, **{"url": fake.url} | attributes)
        if server is not default:
            monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        cluster.look()
        return cluster

    return make


MakePromotion = Callable[..., Promotion]


@pytest.fixture
def make_promotion(make_cluster: MakeCluster, make_published: MakePublished) -> MakePromotion:
    """A promotion of a checkpoint in a cluster of its own; ``changes`` are of its rollout."""

    def make(*kind: str, changes: Any = None, **cluster: Any) -> Promotion:
        return Promotion(make_cluster(*kind, **cluster), make_published(), changes or {})

    return make


@pytest.fixture
def canary(fake: FakeOpenAI) -> Iterator[Callable[[Cluster], str]]:
    """Lets a service answer as its ``canaryTrafficPercent`` says; gives where the new one does."""
    with fake_openai() as new, fake_openai() as gateway:
        answer_as_expected(new)
        new.completions = {key: f"{text} anew" for key, text in fake.completions.items()}
        turns = itertools.count()

        def split(cluster: Cluster) -> str:
            def backend() -> FakeOpenAI:
                predictor = cluster.get()["spec"]["predictor"]
                is_new = predictor["model"].get("storageUri") != BY_HAND
                share = predictor.get("canaryTrafficPercent", 100) if is_new else 0
                return new if next(turns) % 100 < share else fake

            gateway.backend = backend
            cluster.url = gateway.url
            cluster.look()
            return new.url

        yield split
