"""A server that writes down what it is sent: a webhook, or a stand-in for a Pushgateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback import answering


@dataclass
class Listener:
    """What came.

    Attributes:
        url: Where it listens.
        status: What it answers.
        requests: Method, path and body of each request.
    """

    url: str = ""
    status: int = 200
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)

    @property
    def posted(self) -> list[Any]:
        """The bodies, as JSON."""
        return [json.loads(body) for _, _, body in self.requests]


@contextmanager
def listening() -> Iterator[Listener]:
    """Runs one until the block is left."""
    listener = Listener()

    class Handler(BaseHTTPRequestHandler):
        def take(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            listener.requests.append((self.command, self.path, body))
            self.send_response(listener.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_PUT = take  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with answering(Handler) as port:
        listener.url = f"http://127.0.0.1:{port}"
        yield listener
