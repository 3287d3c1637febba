"""A fake of vLLM's OpenAI server: answers known prompts from a table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback import answering


class FakeOpenAI:
    """What the fake answers; tests change it while it runs.

    Attributes:
        url: Of the server.
        completions: By the prompt's tokens.
        tokens: The token that follows a prompt, by the prompt's tokens.
        backend: Picks who answers a request; None for the fake itself.
        delay: Seconds before each answer.
        broken: Answers 500 where set.
        dies_after: Breaks connections off after so many completions.
        with_tokens: Whether answers hold tokens, as vLLM's do when asked.
        asked: The bodies of all requests for completions.
        connections: How many clients have connected.
    """

    def __init__(self) -> None:
        self.url = ""
        self.completions: dict[tuple[int, ...], str] = {}
        self.tokens: dict[tuple[int, ...], int] = {}
        self.backend: Callable[[], FakeOpenAI] | None = None
        self.delay = 0.0
        self.broken = False
        self.dies_after: int | None = None
        self.with_tokens = True
        self.asked: list[dict[str, Any]] = []
        self.connections = 0

    @property
    def is_dead(self) -> bool:
        return self.dies_after is not None and len(self.asked) > self.dies_after

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        answering = self if self.backend is None else self.backend()
        return {"choices": [answering._choice(*each) for each in enumerate(body["prompt"])]}

    def _choice(self, index: int, prompt: list[int]) -> dict[str, Any]:
        key = tuple(prompt)
        choice: dict[str, Any] = {"index": index, "text": self.completions.get(key, " ??")}
        if self.with_tokens:
            token = self.tokens.get(key)
            choice["token_ids"] = [*choice["text"].encode()] if token is None else [token]
        return choice


@contextmanager
def fake_openai() -> Iterator[FakeOpenAI]:
    """Runs the fake until the block is left."""
    fake = FakeOpenAI()

    class Handler(BaseHTTPRequestHandler):
        def setup(self) -> None:
            super().setup()
            fake.connections += 1

        def do_GET(self) -> None:
            self._send({"data": [{"id": "served"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.asked.append(body)
            self._send(fake.answer(body))

        def _send(self, value: Any) -> None:
            time.sleep(fake.delay)
            if fake.is_dead:
                self.close_connection = True
                return
            data = json.dumps(value).encode()
            self.send_response(500 if fake.broken else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with answering(Handler) as port:
        fake.url = f"http://127.0.0.1:{port}"
        yield fake
