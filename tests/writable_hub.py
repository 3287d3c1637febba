"""A stand-in for a model hub that can be written to, as far as huggingface_hub asks one.

The real hub cannot be reached from tests. What this one answers follows huggingface_hub's own code:
repositories, commits of new-line delimited JSON, large files by the LFS batch API, tags.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from loopback import answering

TOKEN = "hf_writer"


@dataclass
class WritableHub:
    """A hub of one owner.

    Attributes:
        repos: Of each repository the files at its commits, the last one being main.
        private: Of each repository whether only its owner sees it.
        tags: Commits by repository and tag.
        objects: Large files by sha256.
        damage: What is kept in the place of a large file, by name.
        uploads: Sizes of the large files that were sent.
        requests: Method and path of all that was asked.
    """

    url: str = ""
    owner: str = "org"
    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    tags: dict[tuple[str, str], str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    damage: dict[str, bytes] = field(default_factory=dict)
    uploads: list[int] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def files(self, repo: str) -> dict[str, bytes]:
        """What main holds."""
        return list(self.repos[repo].values())[-1]

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Makes files the content of main."""
        commits = self.repos.setdefault(repo, {})
        oid = hashlib.sha1(repr((len(commits), sorted(files.items()))).encode()).hexdigest()
        commits[oid] = files
        return oid

    def resolve(self, repo: str, revision: str) -> str | None:
        """The commit that a revision means."""
        commits = self.repos[repo]
        if revision == "main":
            return list(commits)[-1]
        return revision if revision in commits else self.tags.get((repo, revision))


def is_large(name: str) -> bool:
    """Whether the hub keeps a file as a large one."""
    return name.endswith(".safetensors")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: WritableHub

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self._chunks()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if path.startswith("/upload/"):
            return self._upload(path.removeprefix("/upload/"), body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid credentials"})
        if path == "/api/whoami-v2":
            return self._send(200, {"name": "someone", "orgs": [{"name": self.hub.owner}]})
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            return self._of_repo(f"{owner}/{name}", rest, body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        return self._file(repo, revision, name)

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815 - as http.server asks

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _validate(self, card: str) -> None:
        errors = [] if card.startswith("---\n") else [{"message": "there is no metadata"}]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != self.hub.owner:
            return self._send(403, {"error": "You don't have the rights"})
        if repo in self.hub.repos:
            return self._send(409, {"url": f"{self.hub.url}/{repo}"})
        self.hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.private[repo] = asked.get("private") or asked.get("visibility") == "private"
        return self._send(200, {"url": f"{self.hub.url}/{repo}"})

    def _of_repo(self, repo: str, rest: list[str], body: bytes) -> None:
        hub = self.hub
        if repo not in hub.repos:
            return self._send(404, {}, {"X-Error-Code": "RepoNotFound"})
        match rest:
            case ["auth-check", "write"]:
                return self._send(200, {})
            case [] | ["revision", _]:
                commit = hub.resolve(repo, rest[1] if rest else "main")
                if commit is None:
                    return self._send(404, {}, {"X-Error-Code": "RevisionNotFound"})
                return self._send(200, self._info(repo, commit))
            case ["preupload", _]:
                modes = [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if is_large(each["path"]) else "regular",
                        "shouldIgnore": False,
                    }
                    for each in json.loads(body)["files"]
                ]
                return self._send(200, {"files": modes})
            case ["commit", "main"]:
                return self._commit(repo, [json.loads(line) for line in body.splitlines()])
            case ["tag", revision]:
                hub.tags[repo, json.loads(body)["tag"]] = revision
                return self._send(200, {})
        return self._send(404, {})

    def _info(self, repo: str, commit: str) -> dict[str, Any]:
        siblings = []
        for name, data in self.hub.repos[repo][commit].items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
            if is_large(name):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        return {"id": repo, "sha": commit, "siblings": siblings, "tags": [], "private": True}

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            entry = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/upload/{each['oid']}"
                entry["actions"] = {"upload": {"href": href}}
            objects.append(entry)
        self._send(200, {"transfer": "basic", "objects": objects})

    def _upload(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send(400, {"error": "another content"})
        self.hub.objects[oid] = body
        self.hub.uploads.append(len(body))
        return self._send(200, {})

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        hub = self.hub
        header, *operations = lines
        if header["value"].get("parentCommit") not in (None, hub.resolve(repo, "main")):
            return self._send(412, {"error": "A commit has happened since"})
        files = dict(hub.files(repo))
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                kept = hub.objects[value["oid"]]
                files[value["path"]] = hub.damage.get(value["path"], kept)
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        oid = hub.commit(repo, files)
        url = f"{hub.url}/{repo}/commit/{oid}"
        return self._send(200, {"commitUrl": url, "commitOid": oid})

    def _file(self, repo: str, revision: str, name: str) -> None:
        commit = self.hub.resolve(repo, revision)
        data = self.hub.repos[repo][commit or ""][name]
        self.send_response(200)
        headers = {"X-Repo-Commit": str(commit), "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, each in (headers or {}).items():
            self.send_header(key, each)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def writable_hub() -> Iterator[WritableHub]:
    """The stand-in, listening on loopback."""
    hub = WritableHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with answering(handler) as port:
        hub.url = f"http://127.0.0.1:{port}"
        yield hub
