"""A stand-in for KServe's controller of LLMInferenceServices: their pods, and their routes.

It is played, after the source of KServe 0.20 (``pkg/controller/v1alpha2/llmisvc``), and was
compared with no running controller:

- ``workload_single_node.go``, ``workload_storage.go``, ``workload.go``: the Deployment
  ``NAME-kserve``, whose pods carry none of our annotations and fetch the model by an init
  container, and the Service ``NAME-kserve-workload-svc`` with one port, named by its protocol.
- ``router.go``, ``config-llm-router-route.yaml``: where there is ``spec.router.route``, the
  HTTPRoute ``NAME-kserve-route``, with rules below ``/NAMESPACE/NAME`` and
  ``/publishers/NAMESPACE/models/MODEL``, and the addresses of both in the status; ``status.url`` is
  the former. Without, one address: the Service's.
- ``router_group.go``, ``router_group_routing.go``: members of a group that serve a model of one
  name are the backends of each other's rules, by their weights, once they are ready; the rules
  below ``/NAMESPACE/NAME`` stay as they are. Who is deleted is left out, and ends when no other's
  route leads to it.
- ``llm_inference_service_defaults.go``: the label of the group.

Of the gateway's rules that are split, there is one in place of many.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from promotion.kserve import SOURCE, Pods

from quantlib.promotion.kinds import KINDS, Document

_LABEL = "serving.kserve.io/routing-group"
_FINALIZER = "serving.kserve.io/llmisvc-finalizer"
_MERGE = "application/merge-patch+json"
_ROUTES = "/apis/gateway.networking.k8s.io/v1"


@dataclass
class Router:
    """The LLMInferenceServices of a namespace.

    Attributes:
        pods: Theirs.
        services: Where they are, in the API.
        gateway: The URL that their routes' paths are below.
        protocol: Of their pods.
    """

    pods: Pods
    services: str
    gateway: str
    protocol: str = "https"

    def listed(self) -> list[Document]:
        """All of them."""
        found: list[Document] = self.pods.ask("GET", self.services)["items"]
        return found

    def look(self) -> None:
        """Plays the controller once."""
        for service in self.listed():
            if service["metadata"].get("deletionTimestamp"):
                self._finalize(service)
            else:
                self._reconcile(service)

    def weights(self, name: str) -> list[tuple[str, int]] | None:
        """The backends of what comes in by the model's name, on the route of a service."""
        route = self.pods.optional(self._route_path(name))
        rule = route and route["spec"]["rules"][1]
        return rule and [(each["name"], each["weight"]) for each in rule["backendRefs"]]

    def _reconcile(self, service: Document) -> None:
        metadata, spec = service["metadata"], service["spec"]
        name, route = metadata["name"], (spec.get("router") or {}).get("route")
        wanted = {"finalizers": [_FINALIZER], "labels": {_LABEL: (route or {}).get("group")}}
        labels = metadata.get("labels") or {}
        if not metadata.get("finalizers") or labels.get(_LABEL) != wanted["labels"][_LABEL]:  # type: ignore[index, call-overload]
            self._merge(name, {"metadata": wanted})
        uri, words = KINDS["LLMInferenceService"].read(service)
        main: Document = {"name": "main", "image": "vllm"}
        main["env"] = [{"name": "VLLM_ADDITIONAL_ARGS", "value": shlex.join(words)}]
        fetching = {"name": "storage-initializer", "image": "kserve", "args": [uri, "/mnt/models"]}
        pod = {"initContainers": [fetching], "containers": [main]}
        # The annotation is this stand-in's own: it tells what becomes of the pods.
        self.pods.apply(f"{name}-kserve", {SOURCE: uri}, pod, spec.get("replicas", 1))
        self._make_service(name)
        if route is not None:
            self._write_route(service)
        ready = bool(self.pods.sources(f"{name}-kserve"))
        told: Document = {"conditions": [{"type": "Ready", "status": str(ready)}]}
        told |= {"observedGeneration": metadata["generation"]}
        host = f"{self.protocol}://{name}-kserve-workload-svc.{self.pods.namespace}.svc"
        own, shared = (f"{self.gateway}{path}" for path in self._paths(service))
        urls = [host] if route is None else [own, shared]
        told |= {"url": own if route is not None else None}
        told |= {"addresses": [{"url": url} for url in urls]}
        status = service.get("status") or {}
        if {key: status.get(key) for key in told} != told:
            self._merge(name, {"status": told}, "/status")

    def _finalize(self, service: Document) -> None:
        name = service["metadata"]["name"]
        others = [each["metadata"]["name"] for each in self.listed()]
        for other in others:
            weights = dict(self.weights(other) or []) if other != name else {}
            if self._backend(name) in weights:
                return
        self.pods.remove(f"{name}-kserve")
        for path in (self._route_path(name), self.pods.path("services", self._backend(name))):
            if self.pods.optional(path):
                self.pods.ask("DELETE", path)
        self._merge(name, {"metadata": {"finalizers": []}})

    def _make_service(self, name: str) -> None:
        if self.pods.find("services", self._backend(name)):
            return
        port = {"name": self.protocol, "port": 8000}
        spec = {"ports": [port], "selector": {"app": f"isvc.{name}-kserve"}}
        metadata = {"name": self._backend(name)}
        body = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
        self.pods.ask("POST", self.pods.path("services"), body)

    def _write_route(self, service: Document) -> None:
        name, route = service["metadata"]["name"], service["spec"]["router"]["route"]
        alone = [{"name": self._backend(name), "weight": 1}]
        members = [
            {"name": self._backend(each["metadata"]["name"]), "weight": share["weight"]}
            for each in self.listed()
            for share in [(each["spec"].get("router") or {}).get("route") or {}]
            if "group" in route and share.get("group") == route["group"]
            if self._may_join(each, service)
        ]
        own, shared = self._paths(service)
        backends = {own: alone, shared: members if "group" in route else alone}
        rules = [
            {"matches": [{"path": {"type": "PathPrefix", "value": path}}], "backendRefs": each}
            for path, each in backends.items()
        ]
        metadata: Document = {"name": f"{name}-kserve-route"}
        body = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute"}
        found = self.pods.optional(self._route_path(name))
        if found is None:
            new = body | {"metadata": metadata, "spec": {"rules": rules}}
            self.pods.ask("POST", self._route_path(name).rpartition("/")[0], new)
        elif found["spec"]["rules"] != rules:
            spec = {"spec": {"rules": rules}}
            self.pods.ask("PATCH", self._route_path(name), spec, _MERGE)

    def _may_join(self, other: Document, service: Document) -> bool:
        if other["metadata"]["name"] == service["metadata"]["name"]:
            return True
        ready = (other.get("status") or {}).get("conditions") == [
            {"type": "Ready", "status": "True"}
        ]
        names = {each["spec"]["model"].get("name") for each in (other, service)}
        return ready and len(names) == 1 and not other["metadata"].get("deletionTimestamp")

    def _paths(self, service: Document) -> tuple[str, str]:
        name, namespace = service["metadata"]["name"], self.pods.namespace
        model = service["spec"]["model"].get("name", name)
        return f"/{namespace}/{name}", f"/publishers/{namespace}/models/{model}"

    @staticmethod
    def _backend(name: str) -> str:
        return f"{name}-kserve-workload-svc"

    def _route_path(self, name: str) -> str:
        return f"{_ROUTES}/namespaces/{self.pods.namespace}/httproutes/{name}-kserve-route"

    def _merge(self, name: str, body: Any, part: str = "") -> None:
        self.pods.ask("PATCH", f"{self.services}/{name}{part}", body, _MERGE)
