"""One service on a Kubernetes API server: read, applied to, annotated, and told about in events."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.kinds import KINDS, Document, Kind

MANAGER = "quantlib-promote"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_SECONDS = 15.0
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class AbsentError(InvalidInputError):
    """There is no such object."""


class ConflictError(QuantlibError):
    """The object was changed since it was read."""


class UnreachableError(QuantlibError):
    """The API server gives no answer, or none that means anything."""


@dataclass(frozen=True)
class Service:
    """An object that serves a model.

    Attributes:
        api: The client.
        kind: Of the object.
        api_version: In which the object is read and changed.
        namespace: Of the object.
        name: Of the object.
    """

    api: Any
    kind: Kind
    api_version: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.name} {self.namespace}/{self.name}"

    def get(self) -> Document:
        """The object as it is now."""
        return self._call("GET", self._path())

    def apply(self, patch: Document, version: str) -> Document:
        """Applies our fields on the server's side; fields of ours that are not named go.

        Args:
            patch: All that is ours.
            version: The resource version that it rests on.

        Raises:
            ConflictError: The object has another version.
        """
        metadata = patch["metadata"] | {"resourceVersion": version}
        query = {"fieldManager": MANAGER, "force": "true"}
        return self._call("PATCH", self._path(), patch | {"metadata": metadata}, _APPLY, query)

    def try_out(self, patch: Document) -> Document:
        """Lets the server say what it would make of a patch, which changes nothing."""
        query = {"fieldManager": MANAGER, "force": "true", "dryRun": "All"}
        return self._call("PATCH", self._path(), patch, _APPLY, query)

    def notes(self) -> Document:
        """What is noted of promotions: a Lease beside the object; empty where nothing is noted.

        KServe copies the annotations of a service to its pods: one that changes all the time would
        start new pods all the time.
        """
        try:
            return self._call("GET", f"{self._leases()}/{self._lease()}")
        except AbsentError:
            return {}

    def note(self, annotations: Mapping[str, str | None], notes: Document) -> Document:
        """Sets annotations of the notes; None removes one.

        Args:
            annotations: By name.
            notes: As they were read.

        Raises:
            ConflictError: They have changed since.
        """
        metadata: Document = {"annotations": dict(annotations)}
        query = {"fieldManager": MANAGER}
        if not notes:
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": metadata | {"name": self._lease()},
            }
            return self._call("POST", self._leases(), lease, "application/json", query)
        metadata["resourceVersion"] = notes["metadata"]["resourceVersion"]
        path = f"{self._leases()}/{self._lease()}"
        return self._call("PATCH", path, {"metadata": metadata}, _MERGE, query)

    def workload(self, document: Document) -> Document | None:
        """The Deployment that KServe makes of the object in Standard mode; None without one."""
        if self.kind.name != "InferenceService":
            return None
        own = document["spec"].get("predictor", {}).get("name")
        name = "-".join(filter(None, (self.name, own, "predictor")))
        try:
            return self._call(
                "GET", f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{name}"
            )
        except InvalidInputError:  # absent, or not for us to read
            return None

    def tell(self, document: Document, reason: str, message: str, *, warning: bool = False) -> None:
        """Leaves an event beside the object.

        Args:
            document: The object.
            reason: One word, in CamelCase.
            message: A sentence.
            warning: Whether it is bad news.
        """
        now = datetime.now(UTC)
        seconds = now.isoformat(timespec="seconds").replace("+00:00", "Z")
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{self.name}.{now.timestamp():.6f}",
                "namespace": self.namespace,
            },
            "involvedObject": {
                "apiVersion": document["apiVersion"],
                "kind": self.kind.name,
                "namespace": self.namespace,
                "name": self.name,
                "uid": document["metadata"]["uid"],
            },
            "reason": reason,
            "message": message[:1000],
            "type": "Warning" if warning else "Normal",
            "source": {"component": MANAGER},
            "firstTimestamp": seconds,
            "lastTimestamp": seconds,
            "count": 1,
        }
        self._call("POST", f"/api/v1/namespaces/{self.namespace}/events", body, "application/json")

    def runtimes(self) -> Iterator[list[Document]]:
        """KServe's runtimes of the namespace, then those of the cluster.

        Raises:
            InvalidInputError: They may not be listed.
        """
        group = "/apis/serving.kserve.io/v1alpha1"
        for kind, path in (
            ("ServingRuntime", f"{group}/namespaces/{self.namespace}/servingruntimes"),
            ("ClusterServingRuntime", f"{group}/clusterservingruntimes"),
        ):
            try:
                listed = self._ask("GET", path)
            except client.ApiException as error:
                if error.status in (401, 403):
                    raise InvalidInputError.one(
                        f"{kind}s", f"no permission to list them: {_message(error)}"
                    ) from None
                if error.status != 404:
                    raise self._error("GET", error) from None
                listed = {"items": []}
            # Objects in a list do not say their kind.
            yield [each | {"kind": kind} for each in listed["items"]]

    def _leases(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"

    def _lease(self) -> str:
        return f"quantlib-promote.{self.kind.plural}.{self.name}"

    def _path(self) -> str:
        group = f"/apis/{self.api_version}"
        return f"{group}/namespaces/{self.namespace}/{self.kind.plural}/{self.name}"

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        content: str | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Document:
        try:
            return self._ask(method, path, body, content, query)
        except client.ApiException as error:
            raise self._error(method, error) from None

    def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        content: str | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Document:
        headers = {"Accept": "application/json"} | ({"Content-Type": content} if content else {})
        try:
            answer: Document = self.api.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                response_type="object",
                _return_http_data_only=True,
                _request_timeout=_SECONDS,
            )
        except (HTTPError, OSError) as error:
            raise UnreachableError(f"the API server does not answer: {error}") from None
        if not isinstance(answer, dict):
            raise UnreachableError(
                f"what answers at {self.api.configuration.host} is no API server, but perhaps a "
                "proxy or a login before it; check the kubeconfig"
            )
        return answer

    def _error(self, method: str, error: Any) -> QuantlibError:
        if error.status == 404:
            return AbsentError.one(
                f"--service {self.name}", f"there is no {self}", "promotion changes, and makes none"
            )
        if "admission webhook" in _message(error):
            return InvalidInputError.one(str(self), f"the cluster refuses that: {_message(error)}")
        if error.status in (401, 403):
            verb = {"GET": "get", "PATCH": "patch", "POST": "note anything about"}[method]
            return InvalidInputError.one(
                str(self),
                f"no permission to {verb} it: {_message(error)}",
                "use the account quantlib-promote of manifests/base/accounts.yaml",
            )
        if error.status == 409:
            return ConflictError(f"{self}: {_message(error)}")
        if error.status >= 500 or error.status == 429:
            return UnreachableError(f"the API server answers {error.status}: {_message(error)}")
        return QuantlibError(f"{self}: the API server answers {error.status}: {_message(error)}")


def _message(error: Any) -> str:
    try:
        return str(client.ApiClient().deserialize(_Body(error.body), "object")["message"])
    except (KeyError, TypeError, ValueError):
        return str(error.reason)


@dataclass(frozen=True)
class _Body:
    data: Any


def find_service(namespace: str, name: str, context: str | None = None) -> Service:
    """The service of a name, of the first kind that has one.

    Args:
        namespace: Where to look.
        name: Of the service.
        context: Of the kubeconfig; None for the current one, or the account of the pod.

    Raises:
        InvalidInputError: There is none, it may not be read, or no cluster is configured.
        UnreachableError: The API server does not answer.
    """
    for option, given in (("--service", name), ("--namespace", namespace)):
        if not _NAME.fullmatch(given):
            raise InvalidInputError.one(option, f"{given!r} is no name of an object in Kubernetes")
    try:
        api = config.new_client_from_config(os.environ.get("KUBECONFIG"), context)
    except config.ConfigException as error:
        if context is not None:
            raise InvalidInputError.one("--context", str(error)) from None
        try:
            config.load_incluster_config()
        except config.ConfigException:
            raise InvalidInputError.one("kubeconfig", str(error), "set KUBECONFIG") from None
        api = client.ApiClient()
    except Exception as error:  # whatever its parsers meet
        said = " ".join(str(error).split())
        raise InvalidInputError.one(
            "kubeconfig", f"cannot be read: {said}", "look at the file that KUBECONFIG names"
        ) from None
    api.configuration.retries = False
    forbidden: list[InvalidInputError] = []
    for each in KINDS.values():
        for version in each.api_versions:
            service = Service(api, each, version, namespace, name)
            try:
                service.get()
            except AbsentError:  # also where the API server does not offer this version
                continue
            except InvalidInputError as error:
                forbidden.append(error)
                break
            return service
    if not forbidden:
        raise AbsentError.one(
            f"--service {name}",
            f"{namespace} has no {' or '.join(KINDS)} of this name",
            "promotion changes a service, and makes none",
        )
    raise InvalidInputError([problem for error in forbidden for problem in error.problems])
