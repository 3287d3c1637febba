"""A promotion as tests drive it, and what a service is to look like afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from promotion.answers import EXPECTED
from promotion.cluster import Cluster, Line, kubeconfig_through
from promotion.services import BY_HAND as BY_HAND

from quantlib.errors import QuantlibError
from quantlib.promotion import direct
from quantlib.promotion.checks import Allowances, check_published
from quantlib.promotion.cluster import Service, find_service
from quantlib.promotion.direct import promote_directly
from quantlib.promotion.record import STALE
from quantlib.promotion.restoring import roll_back

MANIFESTS = Path(__file__).parents[2] / "manifests"


ACCOUNTS = (
    MANIFESTS / "base" / "accounts.yaml",
    MANIFESTS / "components" / "promote-deployment" / "role.yaml",
    MANIFESTS / "components" / "promote-llm-canary" / "role.yaml",
)


@dataclass
class Promotion:
    """A promotion, as the command line makes one; ``changes`` are of its rollout."""

    cluster: Cluster
    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    allowances: Allowances = field(default_factory=Allowances)
    said: list[str] = field(default_factory=list)
    heard: Callable[[str], None] = lambda _: None
    interrupt_at: int | None = None

    @property
    def uri(self) -> str:
        return f"s3://models/tiny/{self.folder.name}/"

    def say(self, text: str) -> None:
        self.said.append(text)
        self.heard(text)
        if len(self.said) - 1 == self.interrupt_at:
            raise KeyboardInterrupt

    def service(self) -> Service:
        return find_service(self.cluster.namespace, "tiny")

    def back(self, **changes: Any) -> str:
        """As `quantlib rollback` does."""
        return roll_back(self.service(), self.cluster.rollout(**changes), self.say)

    def run(self, service: Service | None = None) -> str:
        cluster = self.cluster
        url = cluster.url if cluster.kind.name == "Deployment" else None
        return promote_directly(
            check_published(str(self.folder)),
            self.uri,
            cluster.behind(service or self.service()),
            cluster.rollout(**{"url": url} | self.changes),
            self.allowances,
            EXPECTED,
            self.say,
        )


def serves(cluster: Cluster) -> str | None:
    return cluster.kind.state(cluster.get()).uri


def require_restored(cluster: Cluster, before: dict[str, Any]) -> None:
    """The service is as it was, and what happened is written down."""
    after = cluster.get()
    assert after["spec"] == before["spec"]
    annotations = cluster.annotations()
    assert "quantlib.io/promotion" not in annotations
    assert "quantlib.io/digest" not in annotations
    assert "rolled back" in annotations["quantlib.io/last-promotion"]
    assert cluster.events()[-1][:2] == ("Warning", "RolledBack")


def hooked(
    service: Service,
    before: Callable[[str, str], None] = lambda *_: None,
    after: Callable[[str, str], None] = lambda *_: None,
    change: Callable[[Any, Any], None] = lambda *_: None,
) -> Service:
    """The service with something done before or after each request, told its method and path.

    ``change`` gets the options of each request, and its answer.
    """

    class Api:
        configuration = service.api.configuration

        def call_api(self, path: str, method: str, **options: Any) -> Any:
            before(method, path)
            answer = service.api.call_api(path, method, **options)
            after(method, path)
            change(options, answer)
            return answer

    return replace(service, api=Api())


@dataclass
class Failing:
    """Raises at a request of some methods, counted from 0, or from it on; or would have."""

    error: BaseException
    at: int
    methods: tuple[str, ...] = ("GET", "PATCH", "POST")
    lasting: bool = False
    count: int = 0

    def __call__(self, method: str, _: str) -> None:
        if method in self.methods:
            self.count += 1
            if self.has_failed and (self.lasting or self.count == self.at + 1):
                raise self.error

    @property
    def has_failed(self) -> bool:
        return self.count > self.at


class Gone(BaseException):
    """As kill -9: nothing is done after it."""


def killed(promotion: Promotion, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Runs a promotion whose process is killed as soon as it says something."""

    def kill(text: str) -> None:
        if when in text:
            raise Gone

    with monkeypatch.context() as patch:
        patch.setattr(direct, "restore", lambda *_: "")
        patch.setattr(promotion, "heard", kill)
        with pytest.raises(Gone):
            promotion.run()
    promotion.cluster.clock.sleep(STALE.total_seconds() + 1)


def abandon(promotion: Promotion, line: Line) -> None:
    """Runs a promotion that is cut off as soon as the service changes, and not heard of again."""
    cluster = promotion.cluster
    ready = cluster.ready

    def cut(document: dict[str, Any]) -> bool:
        unchanged = cluster.kind.state(document).uri == BY_HAND
        if not unchanged:
            line.cut()
        return unchanged

    cluster.ready = cut
    with pytest.raises(QuantlibError, match="could not be restored") as failed:
        promotion.run()
    assert f"quantlib rollback --service tiny --namespace {cluster.namespace}" in str(failed.value)
    cluster.ready = ready
    line.mend()


def act_as_account(
    cluster: Cluster, line: Line, folder: Path, verbs: list[str] | None = None
) -> None:
    """Leaves promotion the rights of our manifests, or fewer verbs on services."""
    path = folder / "accounts.yaml"
    documents = [
        each
        for file in ACCOUNTS
        for each in yaml.safe_load_all(file.read_text().replace("smollm2", "tiny"))
        if each["metadata"]["name"].startswith("quantlib-promote")
    ]
    for document in documents:
        if not document["kind"].startswith("Cluster"):
            document["metadata"]["namespace"] = cluster.namespace
        for subject in document.get("subjects", ()):
            subject["namespace"] = cluster.namespace
        if verbs is not None and document["kind"] == "Role":
            notes = [rule for rule in document["rules"] if "leases" in rule["resources"]]
            document["rules"] = [document["rules"][0] | {"verbs": verbs}, *notes]
    path.write_text(yaml.safe_dump_all(documents))
    cluster.server.kubectl("apply", "-f", str(path))
    path_of_token = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/quantlib-promote/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = cluster.call("POST", path_of_token, request, "application/json")
    kubeconfig_through(line, cluster.server, folder / "kubeconfig", answer["status"]["token"])
