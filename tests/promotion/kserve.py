"""A stand-in for the controllers that KServe 0.20 and Kubernetes have, and for a kubelet.

It is played, and no controller: it follows what was measured of the real one in Standard mode.

- Of an InferenceService it makes the Deployment ``NAME-predictor`` and, while ``spec.canary`` is
  there, ``NAME-canary-predictor``; their pods carry all annotations of the service, and KServe's
  own, which says where the model is from.
- A canary has as many pods as its ``minReplicas``, else its share of the service's; the others have
  so many fewer, from the first moment, and never fewer than one.
- A Deployment's new template gets a ReplicaSet; pods of before stay until those of the new one are
  ready. A service is Ready while any pods of its own are.
- The stable Service leads to pods of ``NAME-predictor`` alone, whatever the canary's share.

What it makes of LLMInferenceServices is in :mod:`promotion.kserve_llm`.
"""

from __future__ import annotations

import hashlib
import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client

from quantlib.promotion.kinds import Document

SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
REVISION = "deployment.kubernetes.io/revision"
HASH = "pod-template-hash"
_MERGE = "application/merge-patch+json"
_ABOUT_KSERVE = "serving.kserve.io/"


@dataclass(frozen=True)
class Fate:
    """What becomes of the pods of a checkpoint.

    Attributes:
        seconds: Until they are ready; None for never.
        log: What a container leaves that ends with 1 every ten seconds; None for one that runs.
        waiting: Why a container does not start, and the message.
        unschedulable: Why there is no node.
    """

    seconds: float | None = 0.0
    log: str | None = None
    waiting: tuple[str, str] | None = None
    unschedulable: str | None = None


NEVER = Fate(None)


@dataclass
class Pods:
    """The pods of one namespace.

    Attributes:
        ask: Asks the API server, ``(method, path, body, content type)``.
        namespace: Theirs.
        now: The time in seconds.
        fate: Of the pods of a checkpoint, by its URI.
    """

    ask: Callable[..., Any]
    namespace: str
    now: Callable[[], float]
    fate: Callable[[str], Fate]
    born: dict[str, float] = field(default_factory=dict)
    templates: list[Document] = field(default_factory=list)
    steady: dict[str, tuple[int, str]] = field(default_factory=dict)

    def path(self, plural: str, name: str = "") -> str:
        """Where objects of this namespace are."""
        group = "/api/v1" if plural in ("pods", "services") else "/apis/apps/v1"
        return f"{group}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def find(self, plural: str, name: str) -> Document | None:
        """An object, or None."""
        return self.optional(self.path(plural, name))

    def optional(self, path: str) -> Document | None:
        """What is at a path, or None."""
        try:
            found: Document = self.ask("GET", path)
        except client.ApiException as error:
            assert error.status == 404
            return None
        return found

    def listed(self, plural: str, app: str) -> list[Document]:
        """The objects of a Deployment."""
        found: list[Document] = self.ask("GET", self.path(plural))["items"]
        return [each for each in found if each["metadata"]["labels"].get("app") == app]

    def make_predictors(self, service: Document) -> None:
        """Makes of an InferenceService the Deployments that KServe makes of it."""
        name = service["metadata"]["name"]
        canaries = service["spec"].get("canary") or []
        predictor = service["spec"]["predictor"]
        least = predictor.get("minReplicas") or 1
        taken = 0
        for each in canaries:
            own = each["predictor"].get("minReplicas")
            share = math.ceil(least * each["trafficPercent"] / 100)
            count = own if own is not None else share
            taken += count
            # What is empty in a canary is taken from the service.
            merged = predictor | {k: v for k, v in each["predictor"].items() if v}
            self._deploy(service, f"{name}-{each['predictor']['name']}-predictor", merged, count)
        stable = max(least - taken, 1) if canaries else least
        self._deploy(service, f"{name}-predictor", predictor, stable)
        if not canaries:
            self.remove(f"{name}-canary-predictor")

    def _deploy(self, service: Document, name: str, predictor: Document, replicas: int) -> None:
        annotations = {
            key: value
            for key, value in (service["metadata"].get("annotations") or {}).items()
            if not key.startswith(_ABOUT_KSERVE)
        }
        if uri := predictor["model"].get("storageUri"):
            annotations[SOURCE] = uri
        container = {"name": "kserve-container", "image": "vllm"}
        if arguments := predictor["model"].get("args"):
            container["args"] = arguments
        self.apply(name, annotations, {"containers": [container]}, replicas)

    def apply(self, name: str, annotations: Document, pod: Document, replicas: int) -> None:
        """Makes a Deployment with such pods, or lets it have them, and plays its controller."""
        labels = {"app": f"isvc.{name}"}
        template = {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod}
        spec = {"selector": {"matchLabels": labels}, "template": template, "replicas": replicas}
        found = self.find("deployments", name)
        if found is None:
            body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}}
            body["metadata"]["labels"] = labels
            self.ask("POST", self.path("deployments"), body | {"spec": spec})
        elif self.hash_of(found) != self.hash_of({"spec": spec}):
            self.ask("PUT", self.path("deployments", name), found | {"spec": spec})
        elif found["spec"]["replicas"] != replicas:
            body = {"spec": {"replicas": replicas}}
            self.ask("PATCH", self.path("deployments", name), body, _MERGE)
        self.roll_out(name)

    @staticmethod
    def hash_of(deployment: Document) -> str:
        """Names a template: what the API server fills in is left out."""
        template = deployment["spec"]["template"]
        containers = [
            {name: each.get(name) for name in ("name", "image", "args")}
            for each in template["spec"]["containers"]
        ]
        told = [(template.get("metadata") or {}).get("annotations") or {}, containers]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]

    def roll_out(self, name: str) -> None:
        """Plays a Deployment's controller and the kubelet, once."""
        deployment = self.find("deployments", name)
        assert deployment is not None
        state = (deployment["metadata"]["generation"], self._source_of(deployment))
        if self.steady.get(name) == state and self._answers(self.fate(state[1]), 1e9):
            return
        app = deployment["spec"]["selector"]["matchLabels"]["app"]
        newest = self._newest_set(deployment, app)
        wanted = deployment["spec"].get("replicas", 1)
        pods = self.listed("pods", app)
        new = [pod for pod in pods if pod["metadata"]["labels"][HASH] == newest]
        old = [pod for pod in pods if pod not in new]
        lacking = range(len(new), wanted)
        new += [self._make_pod(deployment, newest, f"{name}-{newest}-{at}") for at in lacking]
        for pod in new[wanted:]:
            self.ask("DELETE", self.path("pods", pod["metadata"]["name"]))
        new = new[:wanted]
        ready = sum(map(self._live, new))
        spare = max(wanted - ready, 0)
        for pod in old[spare:]:
            self.ask("DELETE", self.path("pods", pod["metadata"]["name"]))
        old = old[:spare]
        available = ready + sum(map(self._live, old))
        status = {
            "observedGeneration": self.find("deployments", name)["metadata"]["generation"],  # type: ignore[index]
            "replicas": len(new) + len(old),
            "updatedReplicas": len(new),
            "readyReplicas": available,
            "availableReplicas": available,
        }
        since = min((self.born[pod["metadata"]["uid"]] for pod in new), default=self.now())
        late = ready < wanted and self.now() - since > 600
        reason = "ProgressDeadlineExceeded" if late else "ReplicaSetUpdated"
        condition = {"type": "Progressing", "status": str(not late), "reason": reason}
        path = self.path("deployments", name) + "/status"
        self.ask("PATCH", path, {"status": status | {"conditions": [condition]}}, _MERGE)
        if ready == wanted and not old:
            self.steady[name] = state

    @staticmethod
    def _source_of(deployment: Document) -> str:
        template = deployment["spec"]["template"]
        told = (template.get("metadata") or {}).get("annotations") or {}
        return str(_first_argument(template) or told.get(SOURCE, ""))

    @staticmethod
    def _answers(fate: Fate, age: float) -> bool:
        return fate.seconds is not None and age >= fate.seconds and fate.log is None

    def _newest_set(self, deployment: Document, app: str) -> str:
        digest = self.hash_of(deployment)
        name = f"{deployment['metadata']['name']}-{digest}"
        sets = self.listed("replicasets", app)
        revisions = {
            each["metadata"]["name"]: int(each["metadata"]["annotations"][REVISION])
            for each in sets
        }
        last = max(revisions.values(), default=0)
        if revisions.get(name, -1) == last:
            return digest
        annotations = {REVISION: str(last + 1)}
        self.templates.append(deployment["spec"]["template"])
        if name in revisions:
            body = {"metadata": {"annotations": annotations}}
            self.ask("PATCH", self.path("replicasets", name), body, _MERGE)
        else:
            labels = {"app": app, HASH: digest}
            template = {
                "metadata": {"labels": labels},
                "spec": deployment["spec"]["template"]["spec"],
            }
            body = {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {"name": name, "labels": labels, "annotations": annotations}
                | {"ownerReferences": [_owner(deployment, "Deployment")]},
                "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
            }
            self.ask("POST", self.path("replicasets"), body)
        body = {"metadata": {"annotations": annotations}}
        self.ask("PATCH", self.path("deployments", deployment["metadata"]["name"]), body, _MERGE)
        return digest

    def _make_pod(self, deployment: Document, digest: str, name: str) -> Document:
        replica_set = self.find("replicasets", f"{deployment['metadata']['name']}-{digest}")
        assert replica_set is not None
        template = deployment["spec"]["template"]
        metadata = {
            "name": name,
            "labels": replica_set["metadata"]["labels"],
            "annotations": (template.get("metadata") or {}).get("annotations") or {},
            "ownerReferences": [_owner(replica_set, "ReplicaSet")],
        }
        containers = [
            {"name": c["name"], "image": c["image"]} for c in template["spec"]["containers"]
        ]
        if uri := _first_argument(template):
            metadata["annotations"] = metadata["annotations"] | {SOURCE: uri}
        spec = {"containers": containers, "automountServiceAccountToken": False}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        made: Document = self.ask("POST", self.path("pods"), body)
        self.born[made["metadata"]["uid"]] = self.now()
        return made

    def _live(self, pod: Document) -> bool:
        """Plays the kubelet; says whether the pod is ready."""
        fate = self.fate(_source(pod))
        age = self.now() - self.born[pod["metadata"]["uid"]]
        ready = self._answers(fate, age)
        name = pod["spec"]["containers"][-1]["name"]
        status: Document = {"name": name, "image": "vllm", "imageID": "", "ready": ready}
        status |= {"restartCount": 0, "state": {"running": {}}}
        scheduled: Document = {"type": "PodScheduled", "status": "True"}
        if fate.unschedulable:
            scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            scheduled["message"] = fate.unschedulable
        elif fate.waiting:
            reason, message = fate.waiting
            status["state"] = {"waiting": {"reason": reason, "message": message}}
        elif fate.log is not None and age >= 5:
            status["restartCount"] = int(age // 10)
            status["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
            status["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error"}}
        told = {"phase": "Pending" if fate.unschedulable else "Running", "conditions": [scheduled]}
        if not fate.unschedulable:
            told["containerStatuses"] = [status]
        told["conditions"].append({"type": "Ready", "status": str(ready)})  # type: ignore[attr-defined]
        if {k: pod.get("status", {}).get(k) for k in told} != told:
            path = self.path("pods", pod["metadata"]["name"]) + "/status"
            self.ask("PATCH", path, {"status": told}, _MERGE)
        return ready

    def remove(self, name: str) -> None:
        """Removes a Deployment, and what is of it."""
        if self.find("deployments", name) is None:
            return
        for plural in ("pods", "replicasets"):
            for each in self.listed(plural, f"isvc.{name}"):
                self.ask("DELETE", self.path(plural, each["metadata"]["name"]))
        self.ask("DELETE", self.path("deployments", name))
        self.steady.pop(name, None)

    def sources(self, name: str) -> list[str]:
        """The checkpoints of the ready pods behind the Service of a Deployment's name."""
        return [
            _source(pod)
            for pod in self.listed("pods", f"isvc.{name}")
            for condition in pod.get("status", {}).get("conditions") or ()
            if (condition["type"], condition["status"]) == ("Ready", "True")
        ]


def _owner(document: Document, kind: str) -> Document:
    metadata = document["metadata"]
    names = {"name": metadata["name"], "uid": metadata["uid"], "controller": True}
    return {"apiVersion": "apps/v1", "kind": kind} | names


def _first_argument(template: Document) -> str | None:
    arguments = template["spec"]["containers"][-1].get("args") or [""]
    return arguments[0] if arguments[0].startswith("s3://") else None


def _source(pod: Document) -> str:
    annotations: Document = pod["metadata"].get("annotations") or {}
    return str(annotations.get(SOURCE, ""))


class Kubelet:
    """A client of an API server, with what only a cluster of nodes answers: logs, and proxies.

    Args:
        api: The client.
        pods: Whose logs are asked for.
        url_of: Where a checkpoint answers, by its URI.
    """

    def __init__(self, api: Any, pods: Pods, url_of: Callable[[str], str]) -> None:
        self._api, self._pods, self._url_of = api, pods, url_of
        self._turn = 0
        self.configuration = getattr(api, "configuration", None)

    def call_api(self, path: str, method: str, **options: Any) -> Any:
        """As the client's own."""
        parts = urlsplit(path)
        words = parts.path.split("/")
        if words[-1] == "log":
            pod = self._pods.find("pods", words[-2])
            assert pod is not None
            assert parse_qs(parts.query)["container"] == [pod["spec"]["containers"][-1]["name"]]
            log = self._pods.fate(_source(pod)).log
            return SimpleNamespace(data=(log or "").encode())
        if "proxy" not in words:
            return self._api.call_api(path, method, **options)
        scheme, name, port = words[words.index("services") + 1].split(":")
        is_llm = name.endswith("-workload-svc")
        assert (scheme, port) == (("https", "8000") if is_llm else ("http", "80"))
        sources = self._pods.sources(name.removesuffix("-workload-svc"))
        if not sources:
            raise refused(503, f'no endpoints available for service "{name}"')
        self._turn += 1
        source = sources[self._turn % len(sources)]
        asked = "/" + "/".join(words[words.index("proxy") + 1 :])
        body = options.get("body")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url_of(source) + asked, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return SimpleNamespace(data=answer.read())
        except urllib.error.HTTPError as error:
            raise refused(error.code, "the server said so") from None
        except OSError as error:
            raise refused(502, str(error)) from None


def refused(status: int, message: str) -> client.ApiException:
    """The error of an API server that refuses."""
    error = client.ApiException(status=status, reason=message)
    error.body = json.dumps({"message": message})
    return error
