"""A server that is asked as vLLM's OpenAI server: which models it has, and how it goes on.

How a request gets there is a function: over HTTP to a URL here, through the API server elsewhere.
Every request is one connection of its own, so that what shares traffic by connection shares it.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from typing import Any, TypeVar

from quantlib.errors import QuantlibError

Send = Callable[[str, Any | None, float], bytes]
"""Gives the answer to a path, with a query or without: a GET where the second is None, else a POST
of it as JSON. The third is the seconds that it may take. Raises ServerError."""

_MODELS = "/v1/models"
_COMPLETIONS = "/v1/completions"
_BYTES_SAID = 300
_AT_ONCE = 4
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class ServerError(QuantlibError):
    """A server does not answer, or not as vLLM does. One line."""


@dataclass(frozen=True)
class Completion:
    """How a server goes on after a prompt; ``tokens`` is None where it tells none."""

    text: str
    tokens: tuple[int, ...] | None


class Server:
    """An OpenAI server as vLLM is one. May be asked by several threads at once.

    Attributes:
        name: What errors call it.
        slowest: Seconds of its slowest answer.
    """

    def __init__(self, name: str, send: Send) -> None:
        self.name = name
        self.slowest = 0.0
        self._send = send

    def models(self, seconds: float = 60.0) -> tuple[str, ...]:
        """The names under which it serves, at least one, or ServerError."""
        answer = self._ask(_MODELS, None, seconds)
        with self._understood(_MODELS):
            names = tuple(str(model["id"]) for model in answer["data"])
        if not names:
            raise ServerError(f"{self.name}{_MODELS} names no model")
        return names

    def complete(
        self, model: str, prompts: Sequence[Sequence[int]], tokens: int, seconds: float = 60.0
    ) -> list[Completion]:
        """Continues prompts greedily, all in one request.

        Args:
            model: One of :meth:`models`.
            prompts: Tokens of each: numbers, so that its tokenizer is not what is judged.
            tokens: New ones of each prompt, at most.
            seconds: What the answer may take.

        Raises:
            ServerError: It does not answer, too late, or otherwise.
        """
        # Penalties that a model's own settings ask for would change which token is most likely.
        body = {
            "model": model,
            "prompt": [list(prompt) for prompt in prompts],
            "max_tokens": tokens,
            "temperature": 0,
            "repetition_penalty": 1.0,
            "return_token_ids": True,
        }
        answer = self._ask(_COMPLETIONS, body, seconds)
        with self._understood(_COMPLETIONS):
            choices = {int(choice["index"]): choice for choice in answer["choices"]}
            return [_completion(choices[index]) for index in range(len(prompts))]

    def _ask(self, path: str, body: Any | None, seconds: float) -> Any:
        started = time.monotonic()
        data = self._send(path, body, seconds)
        taken = time.monotonic() - started
        self.slowest = max(self.slowest, taken)
        if taken > seconds:
            raise ServerError(f"{self.name}{path} took {taken:.1f} s, above {seconds:.1f} s")
        with self._understood(path):
            return json.loads(data)

    @contextmanager
    def _understood(self, path: str) -> Iterator[None]:
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(
                f"{self.name}{path} answers otherwise than vLLM does: {error!r}"
            ) from None


def _completion(choice: Any) -> Completion:
    tokens = choice.get("token_ids")
    return Completion(str(choice["text"]), None if tokens is None else tuple(map(int, tokens)))


def together(ask: Callable[[_Item], _Answer], items: Sequence[_Item]) -> list[_Answer]:
    """The answers to all items, a few asked at a time.

    Raises what asking raised; the items that were not asked yet are left out then.
    """
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        return list(pool.map(ask, items))
    finally:
        # Not waiting: an interruption is not to wait for an answer that is late.
        pool.shutdown(wait=False, cancel_futures=True)


def at_url(url: str) -> Server:
    """The server at a URL, with or without ``/v1``, asked over HTTP."""
    base = url.rstrip("/").removesuffix("/v1")

    def send(path: str, body: Any | None, seconds: float) -> bytes:
        content = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(
                base + path, content, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                data: bytes = answer.read()
                return data
        except urllib.error.HTTPError as error:
            what = f"answers {error.code}: {_said(error) or error.reason}"
        except (OSError, HTTPException, ValueError) as error:
            what = _in_words(error, seconds)
        raise ServerError(f"{base}{path} {what}")

    return Server(base, send)


def _said(error: urllib.error.HTTPError) -> str:
    with suppress(OSError, HTTPException):
        return " ".join(error.read(_BYTES_SAID).decode(errors="replace").split())
    return ""


def _in_words(error: Exception, seconds: float) -> str:
    """What is wrong with a server that gave no answer, as the rest of a sentence."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    match reason:
        case socket.gaierror():
            return f"cannot be asked: its name does not resolve ({reason.strerror})"
        case ConnectionRefusedError():
            return "cannot be asked: the connection is refused"
        case ConnectionError() | IncompleteRead():
            return f"broke the connection off ({reason})"
        case HTTPException():
            return f"does not speak HTTP: {str(reason).strip()!r}"
        case TimeoutError():
            return f"does not answer within {seconds:.1f} s"
        case ssl.SSLError():
            return f"cannot be asked: TLS: {reason.reason or reason}"
    return f"does not answer: {reason}"
