"""A promotion as tests drive it, and what a service is to look like afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from promotion.answers import EXPECTED
from promotion.cluster import Cluster
from promotion.services import BY_HAND as BY_HAND

from quantlib.promotion.checks import Allowances, check_published
from quantlib.promotion.cluster import Service, find_service
from quantlib.promotion.direct import promote_directly


@dataclass
class Promotion:
    """A promotion, as the command line makes one; ``changes`` are of its rollout."""

    cluster: Cluster
    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    allowances: Allowances = field(default_factory=Allowances)
    said: list[str] = field(default_factory=list)
    interrupt_at: int | None = None

    @property
    def uri(self) -> str:
        return f"s3://models/tiny/{self.folder.name}/"

    def say(self, text: str) -> None:
        self.said.append(text)
        if len(self.said) - 1 == self.interrupt_at:
            raise KeyboardInterrupt

    def run(self, service: Service | None = None) -> str:
        cluster = self.cluster
        url = cluster.url if cluster.kind.name == "Deployment" else None
        return promote_directly(
            check_published(str(self.folder)),
            self.uri,
            cluster.behind(service or find_service(cluster.namespace, "tiny")),
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
    before: Callable[[str], None] = lambda _: None,
    after: Callable[[str], None] = lambda _: None,
) -> Service:
    """The service with something done before or after each request, told the request's method."""

    class Api:
        def call_api(self, path: str, method: str, **options: Any) -> Any:
            before(method)
            answer = service.api.call_api(path, method, **options)
            after(method)
            return answer

    return replace(service, api=Api())
