"""Who may push: a real registry that asks for passwords, and one that asks for tokens."""

from __future__ import annotations

import base64
import datetime
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from loopback import answering
from oci_registry import oci_registry

from quantlib.errors import InvalidInputError
from quantlib.publishing.oci.address import parse_image_address
from quantlib.publishing.oci.auth import Credentials, find_credentials
from quantlib.publishing.oci.client import Repository
from quantlib.publishing.opening import publishing_problems
from quantlib.steps.publish import publish

HTPASSWD = "alice:$2b$04$6NTq4WLgO3ZzSYvGsO0sUuZmGqdzRwkVO9XsYZ2YlDNYN0yObss8O\n"
"""By bcrypt; the password is secret."""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """Writes a config.json of docker's."""
    folder = tmp_path / "docker"
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return lambda config: (folder / "config.json").write_text(json.dumps(config))


def login(registry: str, password: str = "secret") -> dict[str, Any]:
    pair = base64.b64encode(f"alice:{password}".encode()).decode()
    return {"auths": {registry: {"auth": pair}}}


def test_a_password_lets_in_and_its_absence_is_told_before_work(docker, tmp_path, make_run):
    folder = tmp_path / "registry"
    folder.mkdir()
    (folder / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    with oci_registry(folder, auth) as registry:
        address = f"oci://{registry}/team/model"
        [problem] = publishing_problems(address)
        assert str(problem).startswith(f"{address}: the registry refuses access: 401 UNAUTHORIZED")
        assert problem.remedy == f"`docker login {registry}` as somebody who may push there"
        docker(login(registry, "wrong"))
        assert publishing_problems(address)
        docker(login(registry))
        assert publishing_problems(address) == []
        run = make_run()
        _, published = publish(run.store, run.recipe, address, run.checkpoint, run.validation)
        assert published.startswith(f"{address}@sha256:")


def test_a_token_of_the_server_that_the_registry_names_lets_in(docker, tmp_path, make_run):
    with token_server(tmp_path) as (auth, asked), oci_registry(tmp_path / "r", auth) as registry:
        address = f"oci://{registry}/team/model"
        [problem] = publishing_problems(address)
        assert "refuses access" in str(problem)
        docker(login(registry))
        assert publishing_problems(address) == []
        run = make_run()
        _, published = publish(run.store, run.recipe, address, run.checkpoint, run.validation)
        assert published.startswith(f"{address}@sha256:")
        assert {scope for _, scope in asked} == {"repository:team/model:pull,push"}


def test_another_server_is_not_told_who_asks() -> None:
    repository = Repository(parse_image_address("oci://r.example.org/model"))
    repository._authorization = "Bearer secret"
    assert repository._headers() == {"Authorization": "Bearer secret"}
    assert repository._headers("https://r.example.org/v2/up/1") == repository._headers()
    assert repository._headers("https://storage.example.org/up/1") == {}


@contextmanager
def token_server(folder: Path) -> Iterator[tuple[dict[str, Any], list[tuple[str, str]]]]:
    """A stand-in for a server of tokens; the registry checks their signatures itself.

    Yields what the registry's configuration needs, and who asked for which scope.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    bundle = folder / "tokens.pem"
    bundle.write_bytes(certificate.public_bytes(Encoding.PEM))
    chain = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
    asked: list[tuple[str, str]] = []

    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    def token(scope: str) -> str:
        kind, repository, actions = scope.split(":")
        access = [{"type": kind, "name": repository, "actions": actions.split(",")}]
        moment = int(time.time())
        claims = {"iss": "tests", "aud": "registry", "sub": "alice", "jti": "1", "access": access}
        claims |= {"exp": moment + 300, "nbf": moment - 10, "iat": moment}
        head = {"typ": "JWT", "alg": "ES256", "x5c": [chain]}
        content = ".".join(encoded(json.dumps(part).encode()) for part in (head, claims))
        numbers = decode_dss_signature(key.sign(content.encode(), ec.ECDSA(hashes.SHA256())))
        signature = b"".join(number.to_bytes(32, "big") for number in numbers)
        return f"{content}.{encoded(signature)}"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            scope = parse_qs(urlsplit(self.path).query)["scope"][0]
            who = self.headers.get("Authorization", "")
            asked.append((who, scope))
            known = who == Credentials("alice", "secret").header
            body = json.dumps({"token": token(scope)}).encode() if known else b"{}"
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with answering(Handler) as port:
        realm = f"http://127.0.0.1:{port}/token"
        settings = {"realm": realm, "service": "registry", "issuer": "tests"}
        yield {"token": settings | {"rootcertbundle": str(bundle)}}, asked


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, None),
        ({"auths": {"other.example.org": {"auth": "YTpi"}}}, None),
        ({"auths": {"r.example.org": {"auth": "YTpiOmM="}}}, Credentials("a", "b:c")),
        ({"auths": {"https://r.example.org": {"auth": "YTpi"}}}, Credentials("a", "b")),
        (
            {"auths": {"r.example.org": {"username": "a", "password": "b"}}},
            Credentials("a", "b"),
        ),
        (
            {"auths": {"r.example.org": {"auth": "YTo=", "identitytoken": "t"}}},
            Credentials("a", "", "t"),
        ),
    ],
)
def test_what_docker_login_wrote_is_read(docker, config, found) -> None:
    docker(config)
    assert find_credentials("r.example.org") == found


def test_a_helper_of_docker_is_asked(docker, tmp_path, monkeypatch) -> None:
    helper = tmp_path / "docker-credential-vault"
    helper.write_text(
        '#!/bin/sh\nread -r name\necho "{\\"Username\\": \\"$1\\", \\"Secret\\": \\"of $name\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    docker({"credHelpers": {"r.example.org": "vault"}})
    assert find_credentials("r.example.org") == Credentials("get", "of r.example.org")
    docker({"credHelpers": {"r.example.org": "nowhere"}})
    with pytest.raises(InvalidInputError, match="docker-credential-nowhere cannot be asked"):
        find_credentials("r.example.org")


def test_damaged_credentials_are_told(docker) -> None:
    docker({"auths": {"r.example.org": {"auth": "?"}}})
    with pytest.raises(InvalidInputError, match=r"auths\.r\.example\.org\.auth: is no base64"):
        find_credentials("r.example.org")
