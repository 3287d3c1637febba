"""One service on a Kubernetes API server, and what belongs to it: its pods, notes and events."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from kubernetes import client, config

from quantlib.errors import InvalidInputError, Problem
from quantlib.promotion.api import (
    MANAGER,
    AbsentError,
    ForbiddenError,
    UnreachableError,
    ask,
    message_of,
    send,
)
from quantlib.promotion.kinds import KINDS, Kind
from quantlib.promotion.llm_canary import KIND as LLM
from quantlib.promotion.llm_canary import canary_name
from quantlib.promotion.merging import Document, annotations_of, difference, unlike
from quantlib.promotion.verified_start import STORAGE_CONTAINER
from quantlib.serving.client import Server, ServerError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_APPS = "/apis/apps/v1"
_KSERVE = "/apis/serving.kserve.io/v1alpha1"
_REVISION = "deployment.kubernetes.io/revision"
_PLAIN: Document = {"spec": {"ports": [{}]}}


@dataclass(frozen=True)
class Service:
    """An object that serves a model, read and changed in ``api_version`` by a client ``api``."""

    api: Any
    kind: Kind
    api_version: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.name} {self.namespace}/{self.name}"

    def get(self, path: str | None = None) -> Document:
        """The object as it is now; another one, where a path is given."""
        return self._ask("GET", path or self._path)

    def change(
        self, before: Document, after: Document, *, path: str | None = None, dry_run: bool = False
    ) -> Document:
        """Makes of the object, or of the one at a path, what is wanted, and touches nothing else.

        A merge patch with what differs. A dry run only asks what the server would make of it.

        Returns:
            What the server made of it.

        Raises:
            ConflictError: It was changed since it was read.
            InvalidInputError: A webhook, or definitions that drop fields, make something else of
                it; without a dry run, it was changed.
        """
        patch = difference(before, after)
        if not patch:
            return before
        query = {"dryRun": "All"} if dry_run else {}
        if not dry_run:
            version = {"resourceVersion": before["metadata"]["resourceVersion"]}
            patch["metadata"] = patch.get("metadata", {}) | version
        made = self._ask("PATCH", path or self._path, patch, **query)
        self._require_as_asked(after, made, dry_run=dry_run)
        return made

    @property
    def canary(self) -> Service:
        """The object beside this one that serves a new checkpoint, whether or not it is there."""
        return replace(self, name=canary_name(self.name))

    def seen(self) -> Document | None:
        """The object as it is now; None where it is absent, or not for us to read."""
        return self._seen(self._path)

    def make(self, document: Document, *, dry_run: bool = False) -> Document:
        """Makes the object, as :meth:`change` changes it; ConflictError where it is there."""
        query = {"dryRun": "All"} if dry_run else {}
        made = self._ask("POST", self._path.rpartition("/")[0], document, **query)
        self._require_as_asked(document, made, dry_run=dry_run)
        return made

    def remove(self) -> None:
        """Asks for the object to be deleted, which its finalizers may delay."""
        with suppress(AbsentError):
            self._ask("DELETE", self._path)

    def _require_as_asked(self, wanted: Document, made: Document, *, dry_run: bool) -> None:
        if lost := unlike(wanted, made):
            made_of_it = "would make" if dry_run else "made"
            raise InvalidInputError.one(
                str(self),
                f"the cluster {made_of_it} something else of it: not as asked is "
                f"{', '.join(lost[:5])}",
                "look at its definitions and admission webhooks",
            )

    def lease(self) -> Document:
        """The Lease on which promotions of this very object are noted; empty where there is none.

        KServe copies the annotations of a service to its pods: one that changes all the time would
        start new pods all the time.
        """
        try:
            return self.get(self._lease)
        except AbsentError:
            return {}

    def annotate_lease(
        self, annotations: Mapping[str, str | None], notes: Document, owner: Document | None = None
    ) -> Document:
        """Sets annotations of the Lease, if it is as it was read; None removes one.

        With an owner, they are of this object from now on, and go when it goes.

        Raises:
            ConflictError: They have changed since.
        """
        metadata: Document = {"annotations": dict(annotations)}
        if owner is not None:
            metadata["ownerReferences"] = [self.reference(owner["metadata"]["uid"])]
        if not notes:
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
            leases, _, metadata["name"] = self._lease.rpartition("/")
            return self._ask("POST", leases, lease | {"metadata": metadata})
        metadata["resourceVersion"] = notes["metadata"]["resourceVersion"]
        return self._ask("PATCH", self._lease, {"metadata": metadata})

    def deployment(self, name: str) -> Document | None:
        """A Deployment of the namespace; None where it is absent, or not for us to read."""
        return self._seen(f"{_APPS}/namespaces/{self.namespace}/deployments/{name}")

    def pods(self, deployment: Document) -> list[Document]:
        """The pods of a Deployment's newest ReplicaSet, or ForbiddenError."""
        labels = deployment["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))

        def listed(group: str, plural: str) -> list[Document]:
            path = f"{group}/namespaces/{self.namespace}/{plural}"
            found: list[Document] = self._ask("GET", path, labelSelector=selector)["items"]
            return found

        revision = annotations_of(deployment).get(_REVISION)
        newest = {
            each["metadata"]["uid"]
            for each in listed(_APPS, "replicasets")
            if annotations_of(each).get(_REVISION) == revision
        }
        return [
            pod
            for pod in listed("/api/v1", "pods")
            for owner in pod["metadata"].get("ownerReferences") or ()
            if owner["uid"] in newest
        ]

    def log(self, pod: str, container: str, *, previous: bool) -> str:
        """The last lines of a container's log; empty where they cannot be read."""
        query = f"container={container}&previous={str(previous).lower()}&tailLines=40"
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log?{query}"
        try:
            answer = send(self.api, "GET", path, _preload_content=False)
        except (client.ApiException, UnreachableError):
            return ""
        return str(answer.data.decode(errors="replace"))

    def behind(self, name: str) -> Server:
        """What answers behind a Service of the namespace, asked through the API server."""
        place = f"/api/v1/namespaces/{self.namespace}/services/{self._proxied(name)}/proxy"
        called = f"the Service {name}, through the API server"

        def asked(path: str, body: Any, seconds: float) -> bytes:
            method = "GET" if body is None else "POST"
            try:
                answer = send(self.api, method, place + path, body, seconds, _preload_content=False)
            except client.ApiException as error:
                said = f" answers {error.status}: {message_of(error)[:300]}"
            except UnreachableError as error:
                said = f": {error}"
            else:
                return bytes(answer.data)
            raise ServerError(f"{called}: {path}{said}")

        return Server(called, asked)

    def may_ask(self, name: str) -> bool:
        """Whether the account may ask behind a Service through the API server."""
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        asked = {"group": "", "resource": "services", "subresource": "proxy"}
        asked |= {"namespace": self.namespace, "name": self._proxied(name)}
        reviews = ({"resourceAttributes": asked | {"verb": verb}} for verb in ("get", "create"))
        try:
            return all(
                self._ask("POST", path, {"spec": review})["status"]["allowed"] for review in reviews
            )
        except InvalidInputError:
            return False

    def create_event(
        self, document: Document, reason: str, message: str, *, warning: bool = False
    ) -> None:
        """Creates an event of the object; the reason is one word in CamelCase."""
        now = datetime.now(UTC)
        seconds = f"{now:%Y-%m-%dT%H:%M:%SZ}"
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{self.name}.{now.timestamp():.6f}", "namespace": self.namespace},
            "involvedObject": self.reference(document["metadata"]["uid"])
            | {"namespace": self.namespace},
            "reason": reason,
            "message": message[:1000],
            "type": "Warning" if warning else "Normal",
            "source": {"component": MANAGER},
            "firstTimestamp": seconds,
            "lastTimestamp": seconds,
            "count": 1,
        }
        self._ask("POST", f"/api/v1/namespaces/{self.namespace}/events", body)

    def runtimes(self) -> Iterator[list[Document]]:
        """KServe's runtimes of the namespace, then those of the cluster, or ForbiddenError."""
        for kind, path in (
            ("ServingRuntime", f"{_KSERVE}/namespaces/{self.namespace}/servingruntimes"),
            ("ClusterServingRuntime", f"{_KSERVE}/clusterservingruntimes"),
        ):
            try:
                listed = self.get(path)["items"]
            except AbsentError:
                listed = []
            # Objects in a list do not say their kind.
            yield [each | {"kind": kind} for each in listed]

    def storage_container(self) -> Document | None:
        """What makes KServe verify what it fetches; None where that is not installed."""
        return self._seen(f"{_KSERVE}/clusterstoragecontainers/{STORAGE_CONTAINER}")

    def route_path(self, name: str) -> str:
        """Where an HTTPRoute of the namespace is, for :meth:`get` and :meth:`change`."""
        group = "/apis/gateway.networking.k8s.io/v1"
        return f"{group}/namespaces/{self.namespace}/httproutes/{quote(name, safe='')}"

    @property
    def _path(self) -> str:
        group = f"/apis/{self.api_version}"
        return f"{group}/namespaces/{self.namespace}/{self.kind.plural}/{self.name}"

    @property
    def _lease(self) -> str:
        group = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}"
        return f"{group}/leases/quantlib-promote.{self.kind.plural}.{self.name}"

    def reference(self, uid: str) -> Document:
        """What names the object of a uid as the owner of another."""
        named = {"apiVersion": self.api_version, "kind": self.kind.name, "name": self.name}
        return named | {"uid": uid}

    def _proxied(self, name: str) -> str:
        """A Service as the API server's proxy names it: by the port that KServe's Services have.

        That of an LLMInferenceService has the name of its protocol (``reconcileWorkloadService`` of
        KServe's ``workload.go``), which is the cluster's: one that there is not yet has the same.
        """
        if self.kind.name != LLM:
            return f"http:{name}:80"
        path = f"/api/v1/namespaces/{self.namespace}/services/{self.name}-kserve-workload-svc"
        (port, *_) = (self._seen(path) or _PLAIN)["spec"]["ports"]
        return f"{'https' if port.get('name') == 'https' else 'http'}:{name}:8000"

    def _ask(self, method: str, path: str, body: Document | None = None, **query: str) -> Document:
        return ask(self.api, str(self), method, path, body, **query)

    def _seen(self, path: str) -> Document | None:
        try:
            return self.get(path)
        except (AbsentError, ForbiddenError):
            return None


def find_service(namespace: str, name: str, context: str | None = None) -> Service:
    """The service of a name, of the first kind that has one.

    ``context`` is of the kubeconfig; None for its current one, or for the account of the pod.

    Raises:
        InvalidInputError: There is none, it may not be read, or no cluster is configured.
        UnreachableError: The API server does not answer.
    """
    for option, given in (("--service", name), ("--namespace", namespace)):
        if not _NAME.fullmatch(given):
            raise InvalidInputError.one(option, f"{given!r} is no name of an object in Kubernetes")
    api = _connected(context)
    problems: list[Problem] = []
    for kind, version in ((kind, each) for kind in KINDS.values() for each in kind.api_versions):
        service = Service(api, kind, version, namespace, name)
        try:
            service.get()
            return service
        except AbsentError:  # also where the API server does not offer this version
            continue
        except ForbiddenError as error:
            problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    raise AbsentError.one(
        f"--service {name}",
        f"{namespace} has no {' or '.join(KINDS)} of this name",
        "promotion changes a service, and makes none",
    )


def _connected(context: str | None) -> Any:
    """The client of the kubeconfig's cluster, or of the cluster that this pod runs in."""
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
    return api
