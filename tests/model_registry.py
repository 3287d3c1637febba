"""A stand-in for Kubeflow's Model Registry, whose server needs a database.

It answers what the real one answered (its sources of April 2026, on PostgreSQL) to the requests of
:mod:`quantlib.registries.model_registry`: models, versions and artifacts, each found by its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from loopback import answering


@dataclass
class ModelRegistry:
    """What was entered, in the order in which it was.

    Attributes:
        api: The version of the API that it answers at.
        authorizations: Of every request.
    """

    url: str = ""
    api: str = "v1alpha3"
    models: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    registry: ModelRegistry

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        registry, split = self.registry, urlsplit(self.path)
        registry.authorizations.append(self.headers.get("Authorization"))
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        asked = dict(parse_qsl(split.query))
        root = f"/api/model_registry/{registry.api}/"
        match (self.command, split.path.removeprefix(root).split("/")):
            case "GET", ["registered_models"]:
                return self._send(200, {"items": registry.models, "size": len(registry.models)})
            case "GET", ["registered_model"]:
                return self._found(registry.models, name=asked["name"])
            case "POST", ["registered_models"]:
                return self._make(registry.models, body)
            case "GET", ["model_version"]:
                of = {"registeredModelId": asked["parentResourceId"], "name": asked["name"]}
                return self._found(registry.versions, **of)
            case "POST", ["model_versions"]:
                return self._make(registry.versions, body)
            case "GET", ["model_versions", version, "artifacts"]:
                items = [each for each in registry.artifacts if each["version"] == version]
                return self._send(200, {"items": items, "size": len(items)})
            case "POST", ["model_versions", version, "artifacts"]:
                taken = [each["name"] for each in registry.artifacts if each["version"] == version]
                if body["name"] in taken:
                    return self._send(409, {"code": "Conflict", "message": "already exists"})
                return self._make(registry.artifacts, body | {"version": version})
        return self._send(404, {"code": "", "message": "not found"})

    do_GET = do_POST = _answer  # noqa: N815 - as http.server asks

    def _found(self, among: list[dict[str, Any]], **wanted: str) -> None:
        for each in among:
            if wanted.items() <= each.items():
                return self._send(200, each)
        return self._send(404, {"code": "404", "message": "not found"})

    def _make(self, among: list[dict[str, Any]], body: dict[str, Any]) -> None:
        among.append(body | {"id": str(len(among) + 1), "state": "LIVE"})
        return self._send(201, among[-1])

    def _send(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def model_registry(api: str = "v1alpha3") -> Iterator[ModelRegistry]:
    """The stand-in, listening on loopback."""
    registry = ModelRegistry(api=api)
    handler = type("Handler", (_Handler,), {"registry": registry})
    with answering(handler) as port:
        registry.url = f"http://127.0.0.1:{port}"
        yield registry
