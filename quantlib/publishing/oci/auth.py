"""Who one is to a registry: what ``docker login`` wrote, and the tokens that one gets for it.

The file is ``$DOCKER_CONFIG/config.json``, else ``~/.docker/config.json``, else podman's
``$REGISTRY_AUTH_FILE``; its helpers (``docker-credential-…``) are asked as docker asks them. Tokens
are those of https://distribution.github.io/distribution/spec/auth/.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from quantlib.errors import InvalidInputError
from quantlib.runtime.foreign_json import parse_mapping

CONFIG_VARIABLE = "DOCKER_CONFIG"
"""Environment variable: the folder of docker's ``config.json``."""

_DOCKER_HUB = "https://index.docker.io/v1/"
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Credentials:
    """What somebody is known by: a name and a password, or a token to get others with."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def header(self) -> str:
        """As the value of ``Authorization``."""
        pair = f"{self.user}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


def find_credentials(registry: str) -> Credentials | None:
    """Those that are configured for a registry; None where none are.

    Raises:
        InvalidInputError: The configuration cannot be read, or a helper of it fails.
    """
    keys = (_DOCKER_HUB,) if registry == "docker.io" else (registry, f"https://{registry}")
    for path in credential_files():
        try:
            config = parse_mapping(path.read_bytes(), str(path))
        except OSError as error:
            raise InvalidInputError.one(str(path), f"cannot be read: {error.strerror}") from None
        for key in keys:
            helper = _mapping(config, "credHelpers").get(key) or config.get("credsStore")
            if helper and (found := _ask_helper(str(helper), key)):
                return found
            if isinstance(entry := _mapping(config, "auths").get(key), dict):
                return _parsed(entry, f"{path}: auths.{key}")
    return None


def credential_files() -> Iterator[Path]:
    """The files that hold credentials, the first one first."""
    files = [Path(os.environ.get(CONFIG_VARIABLE) or Path.home() / ".docker") / "config.json"]
    if podman := os.environ.get("REGISTRY_AUTH_FILE"):
        files.append(Path(podman))
    yield from (file for file in files if file.is_file())


def authorize(
    http: httpx2.Client, challenge: str, credentials: Credentials | None, scope: str
) -> str | None:
    """The value of ``Authorization`` that answers a challenge; None where nothing does.

    Args:
        http: Asks the server of tokens.
        challenge: The value of ``WWW-Authenticate``.
        credentials: Who asks; None for nobody in particular.
        scope: What for: ``repository:name:pull,push``.

    Raises:
        httpx2.HTTPError: The server of tokens does not answer.
    """
    kind, _, rest = challenge.partition(" ")
    if kind.lower() == "basic":
        return credentials.header if credentials else None
    parameters = dict(_PARAMETER.findall(rest))
    if kind.lower() != "bearer" or "realm" not in parameters:
        return None
    asked = {"scope": scope}
    if "service" in parameters:
        asked["service"] = parameters["service"]
    if credentials and credentials.identity_token:
        form = asked | {
            "grant_type": "refresh_token",
            "refresh_token": credentials.identity_token,
            "client_id": "quantlib",
        }
        response = http.post(parameters["realm"], data=form)
    else:
        headers = {"Authorization": credentials.header} if credentials else {}
        response = http.get(parameters["realm"], params=asked, headers=headers)
    if response.status_code != httpx2.codes.OK:
        return None
    answer = parse_mapping(response.content, parameters["realm"])
    token = answer.get("token") or answer.get("access_token")
    return f"Bearer {token}" if token else None


def _mapping(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _parsed(entry: dict[str, Any], where: str) -> Credentials:
    user, password = entry.get("username", ""), entry.get("password", "")
    if auth := entry.get("auth"):
        try:
            user, _, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, ValueError, TypeError):
            raise InvalidInputError.one(f"{where}.auth", "is no base64", "log in again") from None
    return Credentials(str(user), str(password), str(entry.get("identitytoken", "")))


def _ask_helper(name: str, registry: str) -> Credentials | None:
    """What ``docker-credential-<name>`` knows of a registry."""
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, "get"], input=registry, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            return None  # it says so where it holds none
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError.one(
            f"registry {registry}", f"{program} cannot be asked: {error!r}", "log in again"
        ) from None
    if user == "<token>":
        return Credentials(identity_token=secret)
    return Credentials(user, secret)
