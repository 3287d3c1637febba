"""From a release to production and back, with the real parts that run on one machine.

A bucket of a real S3 server, a real API server, a real repository, and vLLM itself: it validates,
and it serves. What a cluster's controller and kubelet would do is done by :class:`Pods`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kube_api
import pytest
import s3
import yaml
from ports import free_ports
from promotion.cluster import Cluster, make_namespace
from promotion.cluster import server as server  # a fixture
from promotion.conftest import Repository
from promotion.conftest import repository as repository  # a fixture
from promotion.driver import BY_HAND
from promotion.kserve import NEVER
from recipes import QUICK

from quantlib.checkpoint.source import StoreSource
from quantlib.promotion.kinds import Document
from quantlib.report.manifest import MANIFEST_NAME
from quantlib.runtime.process_group import end_kept
from quantlib.serving.arguments import checkpoint_arguments, serve_command
from quantlib.serving.server import Server, base_url
from quantlib.store import open_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform"),
]
OVERLAY = "overlays/production"
PLACES = f"s3://{s3.BUCKET}/story"


class Pods:
    """What a controller and a kubelet do: the service's checkpoint, fetched and served by vLLM.

    Pods that served before stay until the new ones are ready, as in a rolling update.

    Attributes:
        damage: What happens to a checkpoint on the pods' disk.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self._urls: dict[str, str] = {}
        self._servers: list[Server] = []
        self.damage: Callable[[Path], None] = lambda _: None
        cluster.ready = self.serve

    def serve(self, document: Document) -> bool:
        uri = document["spec"]["predictor"]["model"]["storageUri"]
        if not uri.startswith(PLACES):
            return True
        if uri not in self._urls:
            assert uri.endswith("/")
            self._urls[uri] = self._start(uri.rstrip("/"))
        self._cluster.url = self._urls[uri]
        return True

    def _start(self, address: str) -> str:
        folder = self._folder / address.rpartition("/")[2]
        published = open_store(address)
        for name in StoreSource(published).names():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            published.export_file(name, folder / name)
        self.damage(folder)
        (port,) = free_ports(1)
        arguments = {"host": "127.0.0.1", "port": port, "served_model_name": "tiny"}
        command = serve_command(
            folder, arguments | checkpoint_arguments(folder), ["--max-num-seqs", "1"]
        )
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
        server = Server(command, environment, folder.with_suffix(".log"))
        self._servers.append(server)
        url = base_url("127.0.0.1", port)
        assert server.wait_until_healthy(f"{url}/health", 240, lambda _: None)
        return url

    def close(self) -> None:
        for each in self._servers:
            end_kept(each.process)


def swap_scales(folder: Path) -> None:
    """Turns the scales of every linear around, so that none is where it belongs."""
    from safetensors.torch import load_file, save_file

    swapped = 0
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if "scale" in name and tensor.numel() > 1:
                tensors[name] = (tensor.flatten().flip(0).reshape(tensor.shape) * 4).contiguous()
                swapped += 1
        path.unlink()
        save_file(tensors, path, metadata={"format": "pt"})
    assert swapped


def make_certain(model: Path) -> None:
    """Has each token followed by its neighbour in the vocabulary, however kernels round.

    The blocks add little to that, unless their scales are wrong.
    """
    from safetensors.torch import load_file, save_file

    (path,) = model.glob("*.safetensors")
    tensors = load_file(path)
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.roll(1, 0) * 2
    tensors["model.embed_tokens.weight"] = embedding * 20
    save_file(tensors, path, metadata={"format": "pt"})


def release(model: Path) -> None:
    """A new release: a weight that differs."""
    from safetensors.torch import load_file, save_file

    (path,) = model.glob("*.safetensors")
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1.5
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def cluster(server: kube_api.ApiServer) -> Cluster:
    cluster = make_namespace(server, "serving", "InferenceService")
    cluster.fates[BY_HAND] = NEVER  # nothing serves before the first promotion
    return cluster


@pytest.fixture
def pods(cluster: Cluster, tmp_path: Path) -> Iterator[Pods]:
    pods = Pods(cluster, tmp_path / "pods")
    ended = threading.Event()

    def control() -> None:
        while not ended.wait(0.1):
            cluster.look()

    thread = threading.Thread(target=control)
    thread.start()
    yield pods
    ended.set()
    thread.join()
    pods.close()


def quantlib(*arguments: str, expect: int = 0) -> str:
    """Runs the command as a person or a CI job would; gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "quantlib", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == expect, done.stdout
    return done.stdout


def make_keys(folder: Path) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "release.pem", folder / "release.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def test_from_release_to_production_and_back(
    make_model: Callable[..., Path],
    small_recipe: Callable[..., Any],
    cluster: Cluster,
    pods: Pods,
    repository: Repository,
    proxy: s3.Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    private, public = make_keys(tmp_path)
    monkeypatch.setenv("QUANTLIB_SIGNING_KEY", str(private))
    monkeypatch.setenv("QUANTLIB_PUBLIC_KEY", str(public))
    monkeypatch.setenv("KUBECONFIG", str(cluster.server.kubeconfig))
    watched, recipe = tmp_path / "watched", tmp_path / "tiny.json"
    settled = small_recipe(
        model=str(watched),
        num_ranges=1,
        # Not W4A16: on CPUs with AMX, vLLM serves that with activations in 8 bits.
        quantization={"weights": {"bits": 8, "group_size": -1}, "activations": "int8"},
        validation={
            "engine": "vllm",
            "max_new_tokens": 8,
            "answer_tokens": 8,
            "thresholds": QUICK["validation"]["thresholds"],
        },
    )
    recipe.write_text(settled.canonical_json())
    watch = ["watch", str(recipe), "--once", "--store", f"{PLACES}/store"]
    watch += ["--publish-to", f"{PLACES}/models"]
    service = ["--service", "tiny", "--namespace", "serving"]
    direct = [*service, "--direct", "--timeout", "240"]

    # Nothing is there yet, which is said; then a model is released, quantized, signed, and done.
    assert "there is no such folder" in quantlib(*watch, expect=1)
    make_certain(make_model(watched, initializer_range=0.05, tie_word_embeddings=False))
    assert f"tiny.json: quantized: {PLACES}/models/" in quantlib(*watch)
    said = quantlib(*watch)
    first = said.strip().rpartition("up to date: ")[2]
    assert first.startswith(f"{PLACES}/models/"), said
    assert "signature        by key" in quantlib("verify", first)

    # By a commit that somebody merges.
    repo = ["--repo", str(repository.remote), "--overlay", OVERLAY]
    branch = f"promote/tiny-{first.rpartition('/')[2][:12]}"
    assert f"pushed {branch}" in quantlib("promote", first, *service, *repo)
    repository.git("fetch", "--quiet", "origin")
    message = repository.git("log", "-1", "--format=%B", f"origin/{branch}")
    assert f"Digest: sha256:{first.rpartition('/')[2]}" in message
    assert "kl_mean" in message
    patch = yaml.safe_load(repository.read(branch, f"{OVERLAY}/promoted-tiny.yaml"))
    assert patch["spec"]["predictor"]["model"]["storageUri"] == f"{first}/"

    # Directly: the service changes once vLLM answers as the report says.
    quantlib("promote", first, *direct)
    assert storage_uri(cluster) == f"{first}/"
    assert cluster.annotations()["quantlib.io/digest"] == f"sha256:{first.rpartition('/')[2]}"
    assert f"serves sha256:{first.rpartition('/')[2]} already" in quantlib(
        "promote", first, *direct
    )

    # A second release. Its pods get a broken copy, are ready all the same, and answer nonsense.
    release(watched)
    assert "quantized" in quantlib(*watch)
    second = quantlib(*watch).strip().rpartition("up to date: ")[2]
    assert second not in ("", first)
    pods.damage = swap_scales
    said = quantlib("promote", second, *direct, expect=1)
    assert "probes are answered as in the report; " in said
    assert storage_uri(cluster) == f"{first}/"
    annotations = cluster.annotations()
    assert annotations["quantlib.io/digest"] == f"sha256:{first.rpartition('/')[2]}"
    assert "rolled back" in annotations["quantlib.io/last-promotion"]
    assert cluster.events()[-1][1] == "RolledBack"

    # One byte of it is changed in the bucket: now it is not even tried.
    model = open_store(second)
    manifest = json.loads(bytes(model.read(MANIFEST_NAME)))
    (weights,) = (n for n in manifest["files"] if n.startswith("model-00001"))
    data = bytearray(model.read(weights))
    data[-1] ^= 1
    model.put_bytes(bytes(data), weights)
    assert weights in quantlib("promote", second, *direct, expect=1)
    assert storage_uri(cluster) == f"{first}/"

    # And whoever looks again finds nothing to do.
    assert "up to date" in quantlib(*watch)


def storage_uri(cluster: Cluster) -> Any:
    return cluster.get()["spec"]["predictor"]["model"]["storageUri"]
