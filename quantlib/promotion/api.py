"""Requests to a Kubernetes API server, and what its refusals mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes import client
from urllib3.exceptions import HTTPError

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.merging import Document

MANAGER = "quantlib-promote"
MERGE = "application/merge-patch+json"
_SECONDS = 15.0
_VERBS = {"GET": "get", "PATCH": "patch", "POST": "create"}
_REFUSALS = ("admission webhook", "exceeded quota", "denied the request", "is forbidden: violates")


class AbsentError(InvalidInputError):
    """There is no such object."""


class ConflictError(QuantlibError):
    """The object was changed since it was read."""


class UnreachableError(QuantlibError):
    """The API server gives no answer, or none that means anything."""


class ForbiddenError(InvalidInputError):
    """The account may not do that."""


@dataclass(frozen=True)
class Api:
    """A client of an API server; ``subject`` is what it is asked about, as errors call it."""

    client: Any
    subject: str

    def get(self, path: str, **query: str) -> Document:
        """An object, or a list of them."""
        return self._document("GET", path, None, query)

    def change(self, path: str, patch: Document, **query: str) -> Document:
        """The object at a path after a JSON merge patch."""
        return self._document("PATCH", path, patch, {"fieldManager": MANAGER, **query})

    def create(self, path: str, body: Document) -> Document:
        """The object after it was created."""
        return self._document("POST", path, body, {"fieldManager": MANAGER})

    def send(self, method: str, path: str, body: Any = None, seconds: float = _SECONDS) -> bytes:
        """What is answered at a path, as bytes: a log, or what lies behind a proxy.

        Raises:
            client.ApiException: It is answered with an error.
            UnreachableError: It is not answered.
        """
        answer = self._ask(method, path, body, {}, seconds, _preload_content=False)
        data: bytes = answer.data
        return data

    def _document(self, method: str, path: str, body: Any, query: Mapping[str, str]) -> Document:
        try:
            answer = self._ask(method, path, body, query, response_type="object")
        except client.ApiException as error:
            raise self._error(method, path, error) from None
        if not isinstance(answer, dict):
            raise UnreachableError(
                f"what answers at {self.client.configuration.host} is no API server, but perhaps a "
                "proxy or a login before it; check the kubeconfig"
            )
        return answer

    def _ask(
        self,
        method: str,
        path: str,
        body: Any,
        query: Mapping[str, str],
        seconds: float = _SECONDS,
        **options: Any,
    ) -> Any:
        headers = {"Accept": "application/json, */*"}
        if body is not None:
            headers["Content-Type"] = MERGE if method == "PATCH" else "application/json"
        try:
            return self.client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=seconds,
                **options,
            )
        except (HTTPError, OSError) as error:
            raise UnreachableError(f"the API server does not answer: {error}") from None

    def _error(self, method: str, path: str, error: Any) -> QuantlibError:
        said = message_of(error)
        if error.status == 404:
            return AbsentError.one(self.subject, f"there is no {path.rpartition('/apis')[2]}")
        if any(word in said for word in _REFUSALS):
            return InvalidInputError.one(self.subject, f"the cluster refuses that: {said}")
        if error.status in (401, 403):
            return ForbiddenError.one(
                self.subject,
                f"no permission to {_VERBS[method]} {_kind_at(path)}: {said}",
                "use the account quantlib-promote of manifests/base/accounts.yaml",
            )
        if error.status == 409:
            return ConflictError(f"{self.subject}: {said}")
        if error.status >= 500 or error.status == 429:
            return UnreachableError(f"the API server answers {error.status}: {said}")
        return QuantlibError(f"{self.subject}: the API server answers {error.status}: {said}")


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
