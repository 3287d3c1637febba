"""Recorded answers of a Kubeflow Pipelines server, which cannot be had outside of a cluster.

They are as its API's definition says, and depend on namespaces and names as its sources do
(kubeflow/pipelines 2.17.0: backend/api, backend/src/apiserver).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from loopback import answering

Answer = tuple[int, Any]


class Recorded:
    """Recorded answers by method and path, and the requests that came.

    Attributes:
        multi_user: Whether it has profiles: without, it takes every namespace for none.
        tag: The version that it says it has.
        pipelines: Those that are there; shared ones have an empty namespace.
        versions: The pipelines' versions.
        runs: Those that are there, the newest first, with the namespace that they are in.
        workflows: What Argo keeps of a run, by its id, as text.
        refusal: Status and reason of every answer.
        login: Status and headers that a proxy before the server gives with a page for people.
    """

    def __init__(self, multi_user: bool = False) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.host = ""
        self.multi_user = multi_user
        self.tag = "2.17.0"
        self.refusal: tuple[int, str] | None = None
        self.pipelines: list[dict[str, str]] = []
        self.versions: list[dict[str, str]] = []
        self.runs: list[dict[str, str]] = []
        self.workflows: dict[str, str] = {}
        self.tokens: set[str | None] = set()
        self.login: tuple[int, dict[str, str]] | None = None

    def sent(self, path: str) -> list[Any]:
        """What was posted to a path."""
        posts = [each for each in self.requests if each[0] == "POST" and each[1].endswith(path)]
        return [json.loads(body) for _, _, body in posts]

    def answer(self, method: str, address: str, body: bytes) -> Answer:
        """Status and body of an answer."""
        split = urlsplit(address)
        path = split.path.removeprefix("/apis/v2beta1")
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        namespace = self._namespace(query.get("namespace"))
        if self.refusal is not None:
            status, reason = self.refusal
            if "upload" in path:  # a server of its own, with another kind of answer
                return status, {"error_message": reason, "error_details": f"{reason}\nmain.go:1"}
            return status, {"code": 7, "message": reason}
        match method, path.split("/")[1:]:
            case "GET", ["healthz"]:
                return 200, {
                    "commit_sha": "c0",
                    "tag_name": self.tag,
                    "multi_user": self.multi_user,
                }
            case "GET", ["pipelines"]:
                there = [each for each in self.pipelines if each["namespace"] == namespace]
                return 200, {"pipelines": _filtered(there, query)}
            case "POST", ["pipelines"]:
                return self._create_pipeline(json.loads(body))
            case "GET", ["pipelines", pipeline, "versions"]:
                there = [each for each in self.versions if each["pipeline_id"] == pipeline]
                return 200, {"pipeline_versions": _filtered(there, query)}
            case "POST", ["pipelines", "upload_version"]:
                return self._create_version(query)
            case (_, ["experiments"]) | ("GET", ["runs"]) if self.multi_user and not (
                namespace or (body and json.loads(body).get("namespace"))
            ):
                return 400, {"code": 3, "message": "cannot have an empty namespace"}
            case "GET", ["experiments"]:
                return 200, {"experiments": []}
            case "POST", ["experiments"]:
                return 200, {"experiment_id": "e1", "display_name": "quantize"}
            case "GET", ["runs"]:
                return 200, {"runs": [each for each in self.runs if each["namespace"] == namespace]}
            case "POST", ["runs"]:
                return 200, {"run_id": "r1"}
            case "GET", ["apis", "v1beta1", "runs", run] if run in self.workflows:
                manifest = self.workflows[run]
                return 200, {"run": {}, "pipeline_runtime": {"workflow_manifest": manifest}}
            case "POST", ["recurringruns"]:
                return 200, {"recurring_run_id": "s1"}
        return 404, {"message": f"{method} {address} is not recorded"}

    def _namespace(self, given: str | None) -> str:
        return (given or "") if self.multi_user else ""

    def _create_pipeline(self, asked: dict[str, str]) -> Answer:
        name = asked.get("name") or asked["display_name"]
        namespace = self._namespace(asked.get("namespace"))
        if any((each["name"], each["namespace"]) == (name, namespace) for each in self.pipelines):
            return 409, {"code": 6, "message": f"The name {name} already exist"}
        made = {
            **asked,
            "pipeline_id": f"p{len(self.pipelines) + 1}",
            "name": name,
            "namespace": namespace,
        }
        self.pipelines.append(made)
        return 200, made

    def _create_version(self, asked: dict[str, str]) -> Answer:
        pipeline, name = asked["pipelineid"], asked["name"]
        if any((each["pipeline_id"], each["name"]) == (pipeline, name) for each in self.versions):
            return 409, {"error_message": "Failed to create a pipeline version"}
        made = {
            "pipeline_version_id": f"v{len(self.versions) + 1}",
            "pipeline_id": pipeline,
            "name": name,
            "description": asked.get("description", ""),
        }
        self.versions.append(made)
        return 200, made


def _filtered(there: list[dict[str, str]], query: dict[str, str]) -> list[dict[str, str]]:
    predicates = json.loads(query.get("filter", '{"predicates": []}'))["predicates"]
    for predicate in predicates:
        assert predicate["operation"] == "EQUALS"
        there = [each for each in there if each[predicate["key"]] == predicate["stringValue"]]
    return there


@contextmanager
def recorded_server(*, multi_user: bool = False) -> Iterator[Recorded]:
    """A server on this machine that gives them."""
    answers = Recorded(multi_user)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.respond("GET")

        def do_POST(self) -> None:
            self.respond("POST")

        def respond(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answers.requests.append((method, self.path, body))
            answers.tokens.add(self.headers.get("Authorization"))
            if answers.login is not None:
                status, headers = answers.login
                content = b"<html>Log in</html>"
            else:
                status, value = answers.answer(method, self.path, body)
                headers, content = {"Content-Type": "application/json"}, json.dumps(value).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with answering(Handler) as port:
        answers.host = f"http://127.0.0.1:{port}"
        yield answers
