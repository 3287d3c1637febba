"""Recorded answers of a Kubeflow Pipelines server, which cannot be had outside of a cluster.

They are as its API's definition says (kubeflow/pipelines, backend/api/v2beta1).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Recorded:
    """Recorded answers by method and path, and the requests that came.

    Attributes:
        login: Status and headers that a proxy before the server gives with a page for people.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.host = ""
        self.refusal: tuple[int, str] | None = None
        self.pipelines: list[dict[str, str]] = []
        self.runs: list[dict[str, str]] = []
        self.tokens: set[str | None] = set()
        self.login: tuple[int, dict[str, str]] | None = None

    def sent(self, path: str) -> list[Any]:
        """What was posted to a path."""
        posts = [each for each in self.requests if each[0] == "POST" and each[1].endswith(path)]
        return [json.loads(body) for _, _, body in posts]

    def answer(self, method: str, path: str) -> tuple[int, Any]:
        """Status and body of an answer."""
        if self.refusal is not None:
            return self.refusal[0], {"code": 7, "message": self.refusal[1]}
        match method, path.partition("?")[0].removeprefix("/apis/v2beta1"):
            case "GET", "/healthz":
                return 200, {"multi_user": False}
            case "GET", "/pipelines":
                return 200, {"pipelines": self.pipelines, "total_size": len(self.pipelines)}
            case "GET", "/pipelines/p1/versions":
                return 200, {"pipeline_versions": [{"pipeline_version_id": "v1"}], "total_size": 1}
            case "POST", "/pipelines/upload":
                return 200, {"pipeline_id": "p1", "display_name": "quantize"}
            case "POST", "/pipelines/upload_version":
                return 200, {"pipeline_id": "p1", "pipeline_version_id": "v2"}
            case "GET", "/experiments":
                return 200, {"experiments": []}
            case "POST", "/experiments":
                return 200, {"experiment_id": "e1", "display_name": "quantize"}
            case "GET", "/runs":
                return 200, {"runs": self.runs}
            case "POST", "/runs":
                return 200, {"run_id": "r1"}
            case "POST", "/recurringruns":
                return 200, {"recurring_run_id": "s1"}
        return 404, {"message": f"{method} {path} is not recorded"}


@contextmanager
def recorded_server() -> Iterator[Recorded]:
    """A server on this machine that gives them."""
    answers = Recorded()

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
                status, value = answers.answer(method, self.path)
                headers, content = {"Content-Type": "application/json"}, json.dumps(value).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    answers.host = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield answers
    server.shutdown()
    server.server_close()
