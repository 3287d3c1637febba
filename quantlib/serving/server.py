"""vLLM's server as a process: started, waited for, and ended with all that it has started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from types import FrameType

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.runtime.keeper import kept
from quantlib.runtime.process_group import end_kept, last_lines

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_STOP = 30.0
_STOPPING = (signal.SIGINT, signal.SIGTERM)
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
_WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def base_url(host: str, port: int) -> str:
    """Where a server that listens on ``host`` answers to this machine."""
    host = _WILDCARDS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def require_free_port(host: str, port: int) -> None:
    """Requires that a server could listen.

    Raises:
        InvalidInputError: The port is taken or not allowed, or the host is no address of this
            machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInputError.one(
            f"--host {host} --port {port}", f"cannot be listened on: {reason}", "choose another"
        ) from None


class Server:
    """A server that was started by :func:`running`.

    Attributes:
        process: The server's keeper.
        log: Gets everything that the server prints.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                kept(command, _SECONDS_TO_STOP),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        self.log = log
        self.stopping = False

    def stop(self) -> None:
        """Tells the server to stop; a second time it is ended at once."""
        self.process.send_signal(signal.SIGTERM)
        self.stopping = True

    def wait_until_healthy(self, url: str, limit: float, waiting: Callable[[float], None]) -> bool:
        """Waits until the server answers.

        Args:
            url: Answers with 200 when the server is ready.
            limit: Seconds to wait.
            waiting: Called after each look, with the seconds since the first.

        Returns:
            Whether it is healthy; if not, it was told to stop.

        Raises:
            QuantlibError: The server ended, or the time is over.
        """
        started = time.monotonic()
        while not self.stopping:
            if self.process.poll() is not None:
                raise self._error("ended before it was ready")
            if _answers(url):
                return True
            seconds = time.monotonic() - started
            if seconds > limit:
                raise self._error(f"was not ready after {limit:.0f} s")
            waiting(seconds)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return False

    def wait(self) -> None:
        """Waits until the server ends or has been told to stop, and has had time to.

        Raises:
            QuantlibError: It ended by itself.
        """
        while not self.stopping:
            if self.process.poll() is not None:
                raise self._error("ended")
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        try:
            self.process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            end_kept(self.process, 0)

    def _error(self, what: str) -> QuantlibError:
        code = self.process.poll()
        status = "" if code is None else f" (exit code {code})"
        return QuantlibError(
            f"the server {what}{status}; its log is {self.log} and ends with:\n"
            f"{last_lines(self.log)}"
        )


def _answers(url: str) -> bool:
    try:
        with _OPEN(url, timeout=5) as answer:
            return answer.status == 200
    except (OSError, HTTPException):
        return False


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Server]:
    """Starts a server; when the context ends, all that it has started is gone.

    SIGINT and SIGTERM stop the server meanwhile; a second one ends it at once.
    """
    server: Server | None = None
    early = 0

    def stopped(_number: int, _frame: FrameType | None) -> None:
        nonlocal early
        if server is None:
            early += 1
        else:
            server.stop()

    before = {number: signal.signal(number, stopped) for number in _STOPPING}
    try:
        server = Server(command, environment, log)
        for _ in range(early):
            server.stop()
        yield server
    finally:
        if server is not None:
            end_kept(server.process)
        for number, handler in before.items():
            signal.signal(number, handler)


class WaitingLine:
    """Says on standard error how long the wait has been: one line on a terminal, else a few."""

    def __init__(self, every: float = 15.0) -> None:
        self._every = every
        self._next = 0.0
        self._terminal = os.isatty(sys.stderr.fileno())

    def __call__(self, seconds: float) -> None:
        """Shows the time if it is due."""
        if self._terminal:
            print(f"\rwaiting for vLLM: {seconds:.0f} s", end="", file=sys.stderr, flush=True)
        elif seconds >= self._next:
            print(f"waiting for vLLM: {seconds:.0f} s", file=sys.stderr, flush=True)
            self._next = seconds + self._every

    def end(self) -> None:
        """Leaves the line."""
        if self._terminal:
            print(file=sys.stderr)
