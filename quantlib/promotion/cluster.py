"""One service on a Kubernetes API server, and what belongs to it: its pods, notes and events."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from kubernetes import client, config

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.api import (
    MANAGER,
    AbsentError,
    Api,
    ForbiddenError,
    UnreachableError,
    message_of,
)
from quantlib.promotion.kinds import KINDS, Document, Kind
from quantlib.promotion.merging import merge_patch, unlike
from quantlib.promotion.server import Server, ServerError
from quantlib.promotion.verified_start import STORAGE_CONTAINER

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_APPS = "/apis/apps/v1"
_REVISION = "deployment.kubernetes.io/revision"


class LossError(InvalidInputError):
    """A change would take more from an object than it says, or less."""


@dataclass(frozen=True)
class Service:
    """An object that serves a model.

    Attributes:
        api: The client of the ``kubernetes`` package.
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
        return self._api.get(self._path())

    def change(self, before: Document, after: Document, *, dry_run: bool = False) -> Document:
        """Makes of the object what is wanted, and touches nothing else.

        A merge patch with what differs; where the server makes something else of it, such as by a
        webhook or by definitions that drop fields, that is an error.

        Args:
            before: The object as it was read.
            after: As it is to be.
            dry_run: Whether the server is only asked what it would make of it.

        Returns:
            What the server made of it.

        Raises:
            ConflictError: It was changed since it was read.
            LossError: The server makes something else of it; without a dry run, it was changed.
        """
        return self._changed(self._path(), before, after, dry_run)

    def notes(self) -> Document:
        """What is noted of promotions of this very object: a Lease; empty where nothing is noted.

        KServe copies the annotations of a service to its pods: one that changes all the time would
        start new pods all the time.
        """
        try:
            return self._api.get(f"{self._leases()}/{self._lease()}")
        except AbsentError:
            return {}

    def note(
        self, annotations: Mapping[str, str | None], notes: Document, owner: Document | None = None
    ) -> Document:
        """Sets annotations of the notes; None removes one.

        Args:
            annotations: By name.
            notes: As they were read.
            owner: The object that they are of from now on: they go when it goes.

        Raises:
            ConflictError: They have changed since.
        """
        metadata: Document = {"annotations": dict(annotations)}
        if owner is not None:
            metadata["ownerReferences"] = [
                {
                    "apiVersion": owner["apiVersion"],
                    "kind": self.kind.name,
                    "name": self.name,
                    "uid": owner["metadata"]["uid"],
                }
            ]
        if not notes:
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": metadata | {"name": self._lease()},
            }
            return self._api.create(self._leases(), lease)
        metadata["resourceVersion"] = notes["metadata"]["resourceVersion"]
        return self._api.change(f"{self._leases()}/{self._lease()}", {"metadata": metadata})

    def deployment(self, name: str) -> Document | None:
        """A Deployment of the namespace; None where it is absent, or not for us to read."""
        try:
            return self._api.get(f"{_APPS}/namespaces/{self.namespace}/deployments/{name}")
        except (AbsentError, ForbiddenError):
            return None

    def pods(self, deployment: Document) -> list[Document]:
        """The pods of a Deployment's newest ReplicaSet.

        Raises:
            ForbiddenError: They may not be listed.
        """
        labels = deployment["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
        revision = (deployment["metadata"].get("annotations") or {}).get(_REVISION)
        sets = self._listed(f"{_APPS}/namespaces/{self.namespace}/replicasets", selector)
        newest = {
            each["metadata"]["uid"]
            for each in sets
            if (each["metadata"].get("annotations") or {}).get(_REVISION) == revision
        }
        return [
            pod
            for pod in self._listed(f"/api/v1/namespaces/{self.namespace}/pods", selector)
            for owner in pod["metadata"].get("ownerReferences") or ()
            if owner["uid"] in newest
        ]

    def log(self, pod: str, container: str, *, previous: bool) -> str:
        """The last lines of a container's log; empty where they cannot be read."""
        query = {"container": container, "previous": str(previous).lower(), "tailLines": "40"}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        try:
            return self._api.text(path, query)
        except QuantlibError:
            return ""

    def route(self, name: str) -> Document:
        """An HTTPRoute of the namespace."""
        return self._api.get(self._route(name))

    def change_route(
        self, name: str, before: Document, after: Document, *, dry_run: bool = False
    ) -> Document:
        """As :meth:`change`, of an HTTPRoute."""
        return self._changed(self._route(name), before, after, dry_run)

    def behind(self, name: str) -> Server:
        """What answers behind a Service of the namespace, asked through the API server."""
        place = f"/api/v1/namespaces/{self.namespace}/services/{_proxied(name)}/proxy"
        called = f"the Service {name}, through the API server"

        def send(path: str, body: Any, seconds: float) -> bytes:
            method = "GET" if body is None else "POST"
            try:
                return self._api.send(method, place + path, body, seconds)
            except client.ApiException as error:
                raise ServerError(
                    f"{called}: {path} answers {error.status}: {message_of(error)[:300]}"
                ) from None
            except UnreachableError as error:
                raise ServerError(f"{called}: {path}: {error}") from None

        return Server(called, send)

    def may_ask(self, name: str) -> bool:
        """Whether the account may ask behind a Service through the API server."""
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        asked = {"group": "", "resource": "services", "subresource": "proxy"}
        asked |= {"namespace": self.namespace, "name": _proxied(name)}
        try:
            return all(
                self._api.create(path, {"spec": {"resourceAttributes": asked | {"verb": verb}}})[
                    "status"
                ]["allowed"]
                for verb in ("get", "create")
            )
        except InvalidInputError:
            return False

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
        self._api.create(f"/api/v1/namespaces/{self.namespace}/events", body)

    def runtimes(self) -> Iterator[list[Document]]:
        """KServe's runtimes of the namespace, then those of the cluster.

        Raises:
            ForbiddenError: They may not be listed.
        """
        group = "/apis/serving.kserve.io/v1alpha1"
        for kind, path in (
            ("ServingRuntime", f"{group}/namespaces/{self.namespace}/servingruntimes"),
            ("ClusterServingRuntime", f"{group}/clusterservingruntimes"),
        ):
            try:
                listed = self._api.get(path)["items"]
            except AbsentError:
                listed = []
            # Objects in a list do not say their kind.
            yield [each | {"kind": kind} for each in listed]

    def storage_container(self) -> Document | None:
        """What makes KServe verify what it fetches; None where that is not installed."""
        group = "/apis/serving.kserve.io/v1alpha1"
        try:
            return self._api.get(f"{group}/clusterstoragecontainers/{STORAGE_CONTAINER}")
        except (AbsentError, ForbiddenError):
            return None

    @property
    def _api(self) -> Api:
        return Api(self.api, str(self))

    def _changed(self, path: str, before: Document, after: Document, dry_run: bool) -> Document:
        patch = merge_patch(before, after)
        if not patch:
            return before
        if not dry_run:
            version = {"resourceVersion": before["metadata"]["resourceVersion"]}
            patch["metadata"] = patch.get("metadata", {}) | version
        made = self._api.change(path, patch, dry_run=dry_run)
        if lost := unlike(after, made):
            made_of_it = "would make" if dry_run else "made"
            raise LossError.one(
                str(self),
                f"the cluster {made_of_it} something else of a change of "
                f"{', '.join(sorted(_leaves(patch)))}: not as asked is {', '.join(lost[:5])}",
                "look at its definitions and admission webhooks",
            )
        return made

    def _listed(self, path: str, selector: str) -> list[Document]:
        found: list[Document] = self._api.get(path, {"labelSelector": selector})["items"]
        return found

    def _leases(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"

    def _lease(self) -> str:
        return f"quantlib-promote.{self.kind.plural}.{self.name}"

    def _path(self) -> str:
        group = f"/apis/{self.api_version}"
        return f"{group}/namespaces/{self.namespace}/{self.kind.plural}/{self.name}"

    def _route(self, name: str) -> str:
        group = "/apis/gateway.networking.k8s.io/v1"
        return f"{group}/namespaces/{self.namespace}/httproutes/{quote(name, safe='')}"


def _proxied(name: str) -> str:
    """A Service as the API server's proxy names it: by the port that KServe's Services have."""
    return f"http:{name}:80"


def _leaves(patch: Document, path: str = "") -> Iterator[str]:
    for key, value in patch.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value and inner != "metadata":
            yield from _leaves(value, inner)
        elif inner != "metadata":
            yield inner


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
            except ForbiddenError as error:
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
