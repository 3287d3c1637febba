"""A real Kubernetes API server for tests: etcd and kube-apiserver as processes on loopback.

The binaries lie in the folder that the environment variable ``KUBEBUILDER_ASSETS`` names, as for
controller-runtime's envtest. There are no controllers and no kubelet: objects are validated,
stored, watched and patched for real, and whatever a controller would do, a test has to do.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import os
import secrets
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from ports import free_ports

START_SECONDS = 300.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class ApiServer:
    """A running API server, and how its administrator reaches it."""

    url: str
    token: str
    kubeconfig: Path

    def kubectl(
        self, *arguments: str, document: Any = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs kubectl as the administrator.

        Args:
            arguments: What follows ``kubectl``.
            document: What it reads from standard input, as JSON.
            check: Whether to fail the test where kubectl fails.
        """
        completed = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.kubeconfig), *arguments],
            input=None if document is None else json.dumps(document),
            capture_output=True,
            text=True,
            timeout=120,
            # It keeps what it discovers of a server in the home folder.
            env=os.environ | {"HOME": str(self.kubeconfig.parent)},
        )
        if check:
            assert completed.returncode == 0, f"kubectl {arguments}: {completed.stderr}"
        return completed

    def accept(self, group: str, version: str, kind: str) -> None:
        """Defines a kind whose objects may hold anything, and waits until it is served."""
        plural = f"{kind.lower()}s"
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        served = {"name": version, "served": True, "storage": True}
        self.define(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.{group}"},
                "spec": {
                    "group": group,
                    "names": {"kind": kind, "plural": plural},
                    "scope": "Namespaced",
                    "versions": [served | {"schema": {"openAPIV3Schema": schema}}],
                },
            }
        )

    def define(self, definition: dict[str, Any]) -> None:
        """Creates the definition of a kind, and waits until it is served."""
        self.kubectl("create", "-f-", document=definition)
        name = f"crd/{definition['metadata']['name']}"
        deadline = time.monotonic() + START_SECONDS
        # At first it has no conditions, which kubectl takes for an error.
        while self.kubectl("wait", "--for=condition=Established", name, check=False).returncode:
            assert time.monotonic() < deadline, f"{name} is not served"


def missing() -> str | None:
    """Why no API server can be started, or None."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if not folder:
        return "KUBEBUILDER_ASSETS names no folder with etcd and kube-apiserver"
    for name in ("etcd", "kube-apiserver"):
        if not os.access(Path(folder, name), os.X_OK):
            return f"KUBEBUILDER_ASSETS: there is no {name} in {folder}"
    return None if shutil.which("kubectl") else "kubectl is not installed"


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    """Runs an API server with RBAC until the block is left.

    Args:
        folder: Where certificates, logs and the kubeconfig go.

    Raises:
        RuntimeError: Something is missing, or the server does not get ready.
    """
    if reason := missing():
        raise RuntimeError(reason)
    assets = Path(os.environ["KUBEBUILDER_ASSETS"])
    etcd_port, peer_port, port = free_ports(3)
    etcd, url = f"http://127.0.0.1:{etcd_port}", f"https://127.0.0.1:{port}"
    token = secrets.token_hex(16)
    certificate, key = _write_certificate(folder)
    tokens = folder / "tokens.csv"
    tokens.write_text(f"{token},admin,admin,system:masters\n", encoding="utf-8")
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(_kubeconfig(url, token, certificate)), encoding="utf-8")

    with ExitStack() as running:
        data = running.enter_context(tempfile.TemporaryDirectory(dir=_in_memory()))
        running.enter_context(
            _process(
                [
                    str(assets / "etcd"),
                    f"--data-dir={data}",
                    f"--listen-client-urls={etcd}",
                    f"--advertise-client-urls={etcd}",
                    f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
                ],
                folder / "etcd.log",
            )
        )
        server = running.enter_context(
            _process(
                [
                    str(assets / "kube-apiserver"),
                    f"--etcd-servers={etcd}",
                    "--bind-address=127.0.0.1",
                    "--advertise-address=127.0.0.1",
                    # There is no node from which pods could reach it.
                    "--endpoint-reconciler-type=none",
                    f"--secure-port={port}",
                    f"--tls-cert-file={certificate}",
                    f"--tls-private-key-file={key}",
                    f"--cert-dir={folder}",
                    f"--token-auth-file={tokens}",
                    "--authorization-mode=RBAC",
                    "--service-cluster-ip-range=10.0.0.0/24",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={key}",
                    f"--service-account-signing-key-file={key}",
                    # Both wait for what a controller would have made.
                    "--disable-admission-plugins=ServiceAccount,ResourceQuota",
                ],
                folder / "kube-apiserver.log",
            )
        )
        _wait_until_ready(url, token, certificate, server, folder / "kube-apiserver.log")
        yield ApiServer(url, token, kubeconfig)


def _in_memory() -> str | None:
    """Where etcd's many calls of fsync cost nothing; None for where temporary files are.

    A container's own may have no room for etcd's log alone.
    """
    found = "/dev/shm"
    roomy = os.access(found, os.W_OK) and shutil.disk_usage(found).free > 2 << 30
    return found if roomy else None


@contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=log.parent, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(
    url: str, token: str, certificate: Path, server: subprocess.Popen[bytes], log: Path
) -> None:
    request = urllib.request.Request(f"{url}/readyz", headers={"Authorization": f"Bearer {token}"})
    context = ssl.create_default_context(cafile=str(certificate))
    # Straight to loopback, whatever proxy the environment names.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with opener.open(request, timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    state = "is not ready" if server.poll() is None else f"exited with {server.returncode}"
    raise RuntimeError(f"kube-apiserver {state}; the end of {log}:\n{tail}")


def _write_certificate(folder: Path) -> tuple[Path, Path]:
    """Writes a certificate for 127.0.0.1, signed by itself, and its key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "server.crt", folder / "server.key"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return certificate_path, key_path


def _kubeconfig(url: str, token: str, certificate: Path) -> dict[str, Any]:
    authority = base64.b64encode(certificate.read_bytes()).decode("ascii")
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "test",
                "cluster": {"server": url, "certificate-authority-data": authority},
            }
        ],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
