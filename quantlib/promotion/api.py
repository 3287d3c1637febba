"""Requests to a Kubernetes API server, and what its refusals mean."""

from __future__ import annotations

import json
from typing import Any

from kubernetes import client
from urllib3.exceptions import HTTPError

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.merging import Document

MANAGER = "quantlib-promote"
_CONTENT = {"PATCH": "application/merge-patch+json", "POST": "application/json"}
_VERBS = {"GET": "get", "PATCH": "patch", "POST": "create", "DELETE": "delete"}
_REFUSALS = ("admission webhook", "exceeded quota", "denied the request", "is forbidden: violates")


class AbsentError(InvalidInputError):
    """There is no such object."""


class ConflictError(QuantlibError):
    """The object was changed since it was read."""


class UnreachableError(QuantlibError):
    """The API server gives no answer, or none that means anything."""


class ForbiddenError(InvalidInputError):
    """The account may not do that."""


def ask(
    api: Any, subject: str, method: str, path: str, body: Document | None = None, **query: str
) -> Document:
    """An object of the API server, or a list of them, after what was asked for.

    A PATCH is a JSON merge patch; ``subject`` is what errors say that it is about.
    """
    manager = {} if body is None else {"fieldManager": MANAGER}
    params = [*(manager | query).items()]
    try:
        answer = send(api, method, path, body, query_params=params, response_type="object")
    except client.ApiException as error:
        raise _error(subject, method, path, error) from None
    if not isinstance(answer, dict):
        raise UnreachableError(
            f"what answers at {api.configuration.host} is no API server, but perhaps a "
            "proxy or a login before it; check the kubeconfig"
        )
    return answer


def send(
    api: Any, method: str, path: str, body: Any = None, seconds: float = 15.0, **options: Any
) -> Any:
    """What is answered at a path, with options as of the client's ``call_api``.

    Raises:
        client.ApiException: It is answered with an error.
        UnreachableError: It is not answered.
    """
    content = {} if body is None else {"Content-Type": _CONTENT[method]}
    try:
        return api.call_api(
            path,
            method,
            header_params={"Accept": "application/json, */*"} | content,
            body=body,
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _request_timeout=seconds,
            **options,
        )
    except (HTTPError, OSError) as error:
        raise UnreachableError(f"the API server does not answer: {error}") from None


def _error(subject: str, method: str, path: str, error: Any) -> QuantlibError:
    said, status = message_of(error), error.status
    if status == 404:
        return AbsentError.one(subject, f"there is no {path.rpartition('/apis')[2]}")
    if any(word in said for word in _REFUSALS):
        return InvalidInputError.one(subject, f"the cluster refuses that: {said}")
    if status in (401, 403):
        return ForbiddenError.one(
            subject,
            f"no permission to {_VERBS[method]} {_kind_at(path)}: {said}",
            "use the account quantlib-promote of manifests/base/accounts.yaml",
        )
    if status == 409:
        return ConflictError(f"{subject}: {said}")
    if status >= 500 or status == 429:
        return UnreachableError(f"the API server answers {status}: {said}")
    return QuantlibError(f"{subject}: the API server answers {status}: {said}")


def message_of(error: Any) -> str:
    """What an API server said of an error, in one line."""
    try:
        said = json.loads(error.body)["message"]
    except (KeyError, TypeError, ValueError):
        said = error.reason
    return " ".join(str(said).split())


def _kind_at(path: str) -> str:
    """The plural of a path's objects: what a role names."""
    words = path.split("/")
    return words[words.index("namespaces") + 2] if "namespaces" in words else words[-1]
