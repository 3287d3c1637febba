"""A fake of vLLM's OpenAI server: answers known prompts and token windows from a table."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeOpenAI:
    """What the fake answers; tests change it while it runs.

    Attributes:
        url: Of the server.
        completions: By the prompt's tokens.
        logprob: Of every token of a prompt.
        delay: Seconds before each answer.
        broken: Answers 500 where set.
    """

    def __init__(self) -> None:
        self.url = ""
        self.completions: dict[tuple[int, ...], str] = {}
        self.logprob = -1.0
        self.delay = 0.0
        self.broken = False

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        choice: dict[str, Any] = {"text": self.completions.get(tuple(prompt), " ??")}
        if "prompt_logprobs" in body:
            entries = [{str(token): {"logprob": self.logprob}} for token in prompt[1:]]
            choice["prompt_logprobs"] = [None, *entries]
        return {"choices": [choice]}


@contextmanager
def fake_openai() -> Iterator[FakeOpenAI]:
    """Runs the fake until the block is left."""
    fake = FakeOpenAI()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({"data": [{"id": "served"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(fake.answer(body))

        def _send(self, value: Any) -> None:
            time.sleep(fake.delay)
            data = json.dumps(value).encode()
            self.send_response(500 if fake.broken else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
