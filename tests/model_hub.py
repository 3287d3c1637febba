"""A model hub that runs here, as far as huggingface_hub asks one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """A model hub with one repository, and what was asked of it.

    Attributes:
        dataset: Whether the repository is a data set.
        files: What it holds at its only commit.
        sent: What is sent instead of a file, to damage it on the way.
        license: What its card calls its licence.
        gated: Answer 403 to every file.
        token: What must be sent to see anything, if it is set.
        busy: How many requests are answered 429 before the first other answer.
        cut_after: Send so many bytes of a weight file, cut the connection and fail from then on.
        requests: Method, path, Range and Authorization of every request.
    """

    url: str
    repo: str = "org/tiny"
    dataset: bool = False
    commit: str = "c0ffee" * 6 + "c0de"
    files: dict[str, bytes] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    license: str = ""
    gated: bool = False
    token: str | None = None
    busy: int = 0
    cut_after: int | None = None
    failing: bool = False
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)

    def load(self, folder: Path) -> None:
        """Takes a folder's files as the content of the repository."""
        self.files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }

    def bytes_requested(self, name: str) -> list[str | None]:
        """The Range of every GET of a file's bytes."""
        paths = (f"/cdn/{name}", f"/{self.repo}/resolve/{self.commit}/{name}")
        return [
            ranges
            for method, path, ranges, _ in self.requests
            if method == "GET" and path in paths and not (is_large(name) and path == paths[1])
        ]


def is_large(name: str) -> bool:
    """Whether the hub keeps a file in its large file storage."""
    return name.endswith((".safetensors", ".bin"))


class HubHandler(BaseHTTPRequestHandler):
    """Speaks the hub's API as far as huggingface_hub uses it to download."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def answer(self) -> None:
        """Answers a request; anything but a file's bytes needs the token."""
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        hub.requests.append((self.command, path, self.headers.get("Range"), authorization))
        if path.startswith("/cdn/"):
            return self.send_bytes(path.removeprefix("/cdn/"))
        if hub.busy:
            hub.busy -= 1
            return self.send(429, {"Retry-After": "0"})
        if hub.token and authorization != f"Bearer {hub.token}":
            return self.send(401, {})
        kind = "/datasets" if hub.dataset else ""
        if path.startswith(f"/api{kind or '/models'}/"):
            return self.send_info(path.removeprefix(f"/api{kind or '/models'}/"))
        path = path.removeprefix(kind)
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repo != hub.repo or revision != hub.commit:
            return self.send(404, {"X-Error-Code": "EntryNotFound"})
        if hub.gated:
            return self.send(403, {"X-Error-Code": "GatedRepo"})
        return self.send_file(name)

    do_GET = do_HEAD = answer  # noqa: N815 - the names that http.server calls

    def send_info(self, path: str) -> None:
        """Answers what a repository holds at a revision."""
        hub = self.hub
        repo, _, revision = path.partition("/revision/")
        if repo != hub.repo:
            return self.send(404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", "refs/pr/1", "refs/convert/parquet", hub.commit):
            return self.send(404, {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for name, data in hub.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data)}
            if is_large(name):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            siblings.append(entry)
        answer = {"id": repo, "sha": hub.commit, "siblings": siblings}
        if hub.license:
            answer["cardData"] = {"license": hub.license}
        body = json.dumps(answer).encode()
        return self.send(200, {"Content-Type": "application/json"}, body)

    def send_file(self, name: str) -> None:
        """Answers a small file, or where to get a large one."""
        hub = self.hub
        if name not in hub.files:
            return self.send(404, {"X-Error-Code": "EntryNotFound"})
        data = hub.files[name]
        headers = {"X-Repo-Commit": hub.commit}
        if is_large(name):
            digest = hashlib.sha256(data).hexdigest()
            port = self.server.server_address[1]
            headers |= {
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                "X-Xet-Hash": digest,
                "X-Xet-Refresh-Route": "/api/xet",
                "Location": f"http://localhost:{port}/cdn/{name}",
            }
            return self.send(302, headers)
        headers["ETag"] = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.send(200, headers, data)

    def send_bytes(self, name: str) -> None:
        """Answers a large file, or a range of it."""
        hub = self.hub
        if hub.failing:
            return self.send(500, {})
        data = hub.sent.get(name, hub.files[name])
        start, end, status, headers = 0, len(data), 200, {}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(data)
            status, headers = 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        if hub.cut_after is None or (wanted and end - start < hub.cut_after):
            return self.send(status, headers, data[start:end])
        self.send_response(status)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.wfile.write(data[start : start + hub.cut_after])
        self.close_connection = hub.failing = True
        return None

    def send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """Sends a whole answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
