"""A cluster without controllers, a controller in step with the tests, a line that can be cut."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_api import ApiServer, api_server, missing
from kubernetes import client, config
from promotion.kserve import NEVER, Fate, Kubelet, Pods
from promotion.kserve_llm import Router
from promotion.services import SERVICES

from quantlib.promotion.cluster import Service
from quantlib.promotion.kinds import KINDS, Document
from quantlib.promotion.rollout import Clock, Rollout

CRDS = Path(__file__).parents[1] / "data" / "kserve-crds"


class SteppedClock(Clock):
    """Stands still until somebody waits; then, as real time would, it lets the others act.

    Attributes:
        waiting: Called whenever somebody waits.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._start = datetime.now(UTC)
        self.waiting: list[Callable[[], None]] = []

    def monotonic(self) -> float:
        return self._seconds

    def utc(self) -> datetime:
        return self._start + timedelta(seconds=self._seconds)

    def sleep(self, seconds: float) -> None:
        self._seconds += seconds
        for each in self.waiting:
            each()


class Line:
    """Forwards connections to an API server until it is cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self.is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            self.is_cut = True
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def mend(self) -> None:
        self.is_cut = False

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                with self._lock:
                    if self.is_cut:
                        near.close()
                        continue
                    far = socket.create_connection(("127.0.0.1", self._target))
                    for each in (near, far):
                        # Else half of a request waits 40 ms for the other half's acknowledgement.
                        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Cluster:
    """One namespace of an API server, and a controller that acts while its clock is waited on.

    Attributes:
        clock: Of the controller, and of whoever promotes.
        ready: Says of a document whether its pods get ready.
        url: What the status names.
        mode: What the status names as deploymentMode.
        observes: Whether the status says which generation it is of, and KServe makes a Deployment.
        fates: What becomes of the pods of a checkpoint, by its URI; others get ready as ``ready``
            says.
        urls: Where a checkpoint answers behind a Service, by its URI; others at ``url``.
        pods: Of the namespace.
        router: Plays KServe's controller of LLMInferenceServices, where it is set.
    """

    def __init__(self, server: ApiServer, namespace: str, kind: str) -> None:
        self.server, self.namespace, self.kind = server, namespace, KINDS[kind]
        self.api = config.new_client_from_config(str(server.kubeconfig))
        self.ready: Callable[[Document], bool] = lambda _: True
        self.url: str | None = None
        self.mode: str | None = None
        self.observes = True
        self.specs: list[Document] = []
        self.fates: dict[str, Fate] = {}
        self.urls: dict[str, str] = {}
        self.api_version = self.kind.api_versions[0]
        self.clock = SteppedClock()
        self.clock.waiting.append(self.look)
        self.pods = Pods(self.call, namespace, self.clock.monotonic, self._fate)
        self.router: Router | None = None
        self._is_ready = True

    def _fate(self, uri: str) -> Fate:
        return self.fates.get(uri, Fate() if self._is_ready else NEVER)

    def behind(self, service: Service) -> Service:
        """A service whose cluster has logs, and answers behind its Services."""
        api = Kubelet(service.api, self.pods, lambda uri: self.urls.get(uri) or self.url or "")
        return replace(service, api=api)

    def rollout(self, **changes: Any) -> Rollout:
        """How a service of this cluster goes over."""
        return Rollout(clock=self.clock, **changes)

    @property
    def path(self) -> str:
        group = f"/apis/{self.api_version}/namespaces/{self.namespace}"
        return f"{group}/{self.kind.plural}/tiny"

    def call(self, method: str, path: str, body: Any = None, content: str = "") -> Any:
        return request(self.api, method, path, body, content)

    def get(self) -> Document:
        return self.call("GET", self.path)

    @property
    def lease(self) -> str:
        group = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}"
        return f"{group}/leases/quantlib-promote.{self.kind.plural}.tiny"

    def annotations(self) -> dict[str, str]:
        """Of the service, and of what is noted of its promotions."""
        own = self.get()["metadata"].get("annotations") or {}
        notes = existing(self.api, self.lease)
        return own | (notes or {"metadata": {}})["metadata"].get("annotations", {})

    def merge(self, body: Any, path: str = "") -> None:
        self.call("PATCH", self.path + path, body, "application/merge-patch+json")

    def predict(self, predictor: Document) -> None:
        """Changes the predictor of an InferenceService, at which its controller looks."""
        self.merge({"spec": {"predictor": predictor}})
        self.look()

    def events(self) -> list[tuple[str, str, str]]:
        listed = self.call("GET", f"/api/v1/namespaces/{self.namespace}/events")["items"]
        listed.sort(key=lambda each: each["metadata"]["name"])
        return [(each["type"], each["reason"], each["message"]) for each in listed]

    def look(self) -> None:
        """Plays the controller's part: looks at the service, and says how it fares."""
        document = self.get()
        if not self.specs or document["spec"] != self.specs[-1]:
            self.specs.append(document["spec"])
        self._is_ready = ready = self.ready(document)
        if self.router:
            self.router.look()
            return
        if self.kind.name == "Deployment":
            self.pods.roll_out("tiny")
            return
        status: Document = {}
        if self.kind.name == "InferenceService":
            status["observedGeneration"] = 1  # of something else, as KServe has it
        elif self.observes:
            status["observedGeneration"] = document["metadata"]["generation"]
        if self._has_deployments:
            self.pods.make_predictors(document)
            ready = bool(self.pods.sources("tiny-predictor"))
        condition = {"type": "Ready", "status": str(ready)}
        if not ready:
            condition |= {"reason": "PodsNotReady", "message": "0 of 1 pods are ready"}
        status |= {"conditions": [condition]}
        if self.url:
            status["url"] = self.url
        if self.mode and self.kind.name == "InferenceService":
            status["deploymentMode"] = self.mode
        canaries = document["spec"].get("canary", [])
        if canaries or (document.get("status") or {}).get("canaryStatuses"):
            status["canaryStatuses"] = [
                {
                    "name": each["predictor"]["name"],
                    "ready": bool(self.pods.sources("tiny-canary-predictor")),
                    "trafficPercent": each["trafficPercent"],
                }
                for each in canaries
            ]
        if document.get("status") != (document.get("status") or {}) | status:
            self.merge({"status": status}, "/status")

    @property
    def _has_deployments(self) -> bool:
        standard = self.observes and self.mode != "Knative"
        return self.kind.name == "InferenceService" and standard


def existing(api: Any, path: str) -> Document | None:
    """An object of an API server, or None."""
    try:
        found: Document = request(api, "GET", path)
    except client.ApiException as error:
        assert error.status == 404
        return None
    return found


def install(server: ApiServer) -> None:
    """Installs KServe's definitions, and waits until they are served."""
    api = config.new_client_from_config(str(server.kubeconfig))
    awaited = []
    for path in CRDS.glob("*.yaml.gz"):
        definition = yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)
        request(api, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        spec = definition["spec"]
        awaited += [
            (f"{spec['group']}/{each['name']}", spec["names"]["plural"])
            for each in spec["versions"]
        ]
    deadline = time.monotonic() + 300
    while not all(is_served(api, *each) for each in awaited):
        assert time.monotonic() < deadline, f"not all of {awaited} are served"
        time.sleep(0.1)


def install_minimal(server: ApiServer) -> None:
    """Installs KServe's kinds as its chart kserve-crd-minimal does: without schemas, atomic."""
    open_part = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    spec = open_part | {"x-kubernetes-map-type": "atomic"}
    versions = {
        "InferenceService": ["v1beta1"],
        "LLMInferenceService": ["v1alpha2", "v1alpha1"],
        "ServingRuntime": ["v1alpha1"],
        "ClusterServingRuntime": ["v1alpha1"],
    }
    for kind, names in versions.items():
        scope = "Cluster" if kind.startswith("Cluster") else "Namespaced"
        properties = {"spec": spec, "status": open_part}
        _define(server, "serving.kserve.io", kind, names, properties, scope)


def install_routes(server: ApiServer) -> None:
    """Installs the Gateway API's HTTPRoute."""
    api = config.new_client_from_config(str(server.kubeconfig))
    if not is_served(api, "gateway.networking.k8s.io/v1", "httproutes"):
        open_part = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        properties = {"spec": open_part, "status": open_part}
        _define(server, "gateway.networking.k8s.io", "HTTPRoute", ["v1"], properties)


def _define(
    server: ApiServer,
    group: str,
    kind: str,
    versions: list[str],
    properties: Document,
    scope: str = "Namespaced",
) -> None:
    api = config.new_client_from_config(str(server.kubeconfig))
    plural = f"{kind.lower()}s"
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
        },
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"kind": kind, "plural": plural},
            "versions": [
                {
                    "name": name,
                    "served": True,
                    "storage": name == versions[0],
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
                }
                for name in versions
            ],
        },
    }
    request(api, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
    deadline = time.monotonic() + 60
    while not all(is_served(api, f"{group}/{name}", plural) for name in versions):
        assert time.monotonic() < deadline, f"{kind} is not served"
        time.sleep(0.1)


def is_served(api: Any, api_version: str, plural: str) -> bool:
    """Whether an API server offers a kind in a version."""
    try:
        request(api, "GET", f"/apis/{api_version}/{plural}")
    except client.ApiException as error:
        assert error.status == 404
        return False
    return True


def request(api: Any, method: str, path: str, body: Any = None, content: str = "") -> Any:
    """Asks an API server."""
    headers = {"Accept": "application/json"} | ({"Content-Type": content} if content else {})
    return api.call_api(
        path,
        method,
        header_params=headers,
        body=body,
        auth_settings=["BearerToken"],
        response_type="object",
        _return_http_data_only=True,
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A real API server that knows KServe's kinds."""
    if reason := missing():
        pytest.skip(reason)
    with api_server(tmp_path_factory.mktemp("kube")) as server:
        install(server)
        yield server


def make_namespace(server: ApiServer, name: str, kind: str, **attributes: Any) -> Cluster:
    """A namespace with a service of a kind in it."""
    cluster = Cluster(server, name, kind)
    for attribute, value in attributes.items():
        setattr(cluster, attribute, value)
    service = yaml.safe_load(SERVICES[kind]) | {"apiVersion": cluster.api_version}
    cluster.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    cluster.call("POST", cluster.path.removesuffix("/tiny"), service)
    return cluster


def kubeconfig_through(line: Line, server: ApiServer, path: Path, token: str | None = None) -> Path:
    """A kubeconfig that leads through a line, as the administrator or with another token."""
    settings = json.loads(server.kubeconfig.read_text())
    settings["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{line.port}"
    if token:
        settings["users"][0]["user"] = {"token": token}
    path.write_text(json.dumps(settings))
    return path
