"""Direct promotion on a real API server; a thread plays the controller's part.

In one file, long as it is: the server starts once for all of it.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kube_api
import pytest
import yaml
from fake_openai import FakeOpenAI, fake_openai
from promotion.cluster import Cluster, Line, install, kubeconfig_through, make_namespace
from promotion.conftest import MakePublished
from promotion.test_smoke import EXPECTED

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.checks import Allowances
from quantlib.promotion.cluster import find_service
from quantlib.promotion.direct import Rollout, promote_directly, roll_back
from quantlib.promotion.published import check_published
from quantlib.promotion.smoke import Limits, smoke_test

BY_HAND = "s3://models/by-hand/"
# Several of them wait for moments that a busy machine lets pass: run them by themselves.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("QUANTLIB_DIRECT_TESTS"),
        reason="set QUANTLIB_DIRECT_TESTS=1 to run what depends on time, on a quiet machine",
    ),
]
ROLLOUT = Rollout(timeout=10.0, restore_seconds=10.0, poll_seconds=0.1, settle_seconds=0.5)
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kube_api.ApiServer]:
    if reason := kube_api.missing():
        pytest.skip(reason)
    with kube_api.api_server(tmp_path_factory.mktemp("kube")) as server:
        install(server)
        yield server


@pytest.fixture
def line(server: kube_api.ApiServer) -> Iterator[Line]:
    line = Line(int(server.url.rpartition(":")[2]))
    yield line
    line.close()


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        fake.completions = dict(EXPECTED.prompts)
        yield fake


MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make_cluster(
    server: kube_api.ApiServer,
    line: Line,
    fake: FakeOpenAI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MakeCluster]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("quantlib.promotion.record.PATIENCE_SECONDS", 3.0)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig_through(line, server, tmp_path / "kubeconfig")))
    controllers = []

    def make(kind: str = "InferenceService", **attributes: Any) -> Cluster:
        cluster = make_namespace(server, f"serving-{next(_numbers)}", kind, tmp_path)
        cluster.url = fake.url
        for name, value in attributes.items():
            setattr(cluster, name, value)
        controllers.append(cluster.controlled())
        controllers[-1].__enter__()
        return cluster

    yield make
    for each in controllers:
        each.__exit__(None, None, None)


@dataclass
class Promotion:
    """A promotion, as the command line makes one."""

    cluster: Cluster
    folder: Path
    rollout: Rollout = ROLLOUT
    said: list[str] = field(default_factory=list)
    interrupt_at: int | None = None

    @property
    def uri(self) -> str:
        return f"s3://models/tiny/{self.folder.name}/"

    def say(self, text: str) -> None:
        self.said.append(text)
        if len(self.said) - 1 == self.interrupt_at:
            raise KeyboardInterrupt

    def run(self) -> str:
        deployment = self.cluster.kind.name == "Deployment"
        rollout = self.rollout
        if deployment:
            rollout = replace(rollout, url=self.cluster.url)
        return promote_directly(
            check_published(str(self.folder)),
            self.uri,
            find_service(self.cluster.namespace, "tiny"),
            rollout,
            Allowances(),
            lambda url: smoke_test(url, EXPECTED, Limits()),
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


@pytest.mark.parametrize("kind", ["InferenceService", "LLMInferenceService", "Deployment"])
def test_a_service_goes_over_and_back_by_hand(
    make_cluster: MakeCluster, make_published: MakePublished, kind: str
) -> None:
    cluster = make_cluster(kind)
    before = cluster.get()["spec"]
    promotion = Promotion(cluster, make_published())
    assert "promoted" in promotion.run()
    assert serves(cluster) == promotion.uri
    annotations = cluster.annotations()
    assert annotations["quantlib.io/digest"] == f"sha256:{promotion.folder.name}"
    assert annotations["quantlib.io/previous-uri"] == BY_HAND
    assert "quantlib.io/promoted-at" in annotations
    assert "quantlib.io/promotion" not in annotations
    reasons = [event[1] for event in cluster.events()]
    assert reasons == ["PromotionStarted", "PromotionStep", "Promoted"]
    assert "perplexity 2.72" in cluster.events()[1][2]
    assert "serves sha256:" in promotion.run(), "the same again has nothing to do"
    assert len(cluster.events()) == 3

    service = find_service(cluster.namespace, "tiny")
    assert f"to {BY_HAND}" in roll_back(service, ROLLOUT, promotion.say)
    assert cluster.get()["spec"] == before
    assert "quantlib.io/digest" not in cluster.annotations()
    assert cluster.events()[-1][1] == "RolledBack"
    with pytest.raises(InvalidInputError, match="nothing to go back to"):
        roll_back(service, ROLLOUT, promotion.say)


def test_pods_that_never_get_ready(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster()
    cluster.ready = lambda document: cluster.kind.state(document).uri == BY_HAND
    before = cluster.get()
    promotion = Promotion(cluster, make_published(), replace(ROLLOUT, timeout=1.0))
    with pytest.raises(QuantlibError, match="not ready after 1 s: 0 of 1 pods are ready") as failed:
        promotion.run()
    assert f"serves {BY_HAND} as before" in str(failed.value)
    require_restored(cluster, before)


@pytest.mark.parametrize("kind", ["InferenceService", "LLMInferenceService", "Deployment"])
def test_ready_but_answering_nonsense(
    make_cluster: MakeCluster, make_published: MakePublished, fake: FakeOpenAI, kind: str
) -> None:
    cluster = make_cluster(kind)
    before = cluster.get()
    fake.logprob = -9.0
    with pytest.raises(QuantlibError, match="perplexity is 8103"):
        Promotion(cluster, make_published()).run()
    require_restored(cluster, before)


def test_a_status_without_a_generation_has_to_stay_ready(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster(observes=False)
    started = time.monotonic()
    Promotion(cluster, make_published()).run()
    assert time.monotonic() - started >= ROLLOUT.settle_seconds


def test_an_absent_service(make_cluster: MakeCluster, make_published: MakePublished) -> None:
    cluster = make_cluster()
    cluster.call("DELETE", cluster.path)
    with pytest.raises(InvalidInputError, match="has no InferenceService or LLMInferenceService"):
        Promotion(cluster, make_published()).run()


ACCOUNTS = Path(__file__).parents[2] / "manifests" / "base" / "accounts.yaml"


def grant(cluster: Cluster, folder: Path, verbs: list[str] | None) -> str:
    """A token with the rights of our manifests, or with fewer verbs on services."""
    path = folder / "accounts.yaml"
    documents = [
        each
        for each in yaml.safe_load_all(ACCOUNTS.read_text())
        if each["metadata"]["name"] == "quantlib-promote"
    ]
    for document in documents:
        document["metadata"]["namespace"] = cluster.namespace
        for subject in document.get("subjects", ()):
            subject["namespace"] = cluster.namespace
        if verbs is not None and "rules" in document:
            document["rules"] = [document["rules"][0] | {"verbs": verbs}]
    path.write_text(yaml.safe_dump_all(documents))
    cluster.server.kubectl("apply", "-f", str(path))
    path_of_token = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/quantlib-promote/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = cluster.call("POST", path_of_token, request, "application/json")
    return answer["status"]["token"]


@pytest.mark.parametrize(("verbs", "missing"), [(["watch"], "get"), (["get"], "patch")])
def test_missing_permissions_are_found_before_anything_changes(
    make_cluster: MakeCluster,
    make_published: MakePublished,
    line: Line,
    tmp_path: Path,
    verbs: list[str],
    missing: str,
) -> None:
    cluster = make_cluster()
    before = cluster.get()["spec"]
    token = grant(cluster, tmp_path, verbs)
    kubeconfig_through(line, cluster.server, tmp_path / "kubeconfig", token)
    with pytest.raises(InvalidInputError) as refused:
        Promotion(cluster, make_published()).run()
    assert f"no permission to {missing} it" in str(refused.value)
    assert cluster.get()["spec"] == before
    assert "quantlib.io/promotion" not in cluster.annotations()


@pytest.mark.parametrize("kind", ["InferenceService", "Deployment"])
def test_the_account_of_the_manifests_suffices(
    make_cluster: MakeCluster,
    make_published: MakePublished,
    line: Line,
    tmp_path: Path,
    kind: str,
) -> None:
    cluster = make_cluster(kind)
    token = grant(cluster, tmp_path, None)
    kubeconfig_through(line, cluster.server, tmp_path / "kubeconfig", token)
    promotion = Promotion(cluster, make_published())
    promotion.run()
    assert serves(cluster) == promotion.uri
    assert "no event was left" not in "\n".join(promotion.said)
    assert cluster.events()[-1][1] == "Promoted"


def test_the_api_server_gone_for_a_while(
    make_cluster: MakeCluster, make_published: MakePublished, line: Line
) -> None:
    cluster = make_cluster()
    cut = []

    def ready(document: dict[str, Any]) -> bool:
        if not cut and cluster.kind.state(document).uri != BY_HAND:
            cut.append(time.monotonic())
            line.cut()
        if cut and time.monotonic() - cut[0] > 1:
            line.mend()
        return not line.is_cut

    cluster.ready = ready
    promotion = Promotion(cluster, make_published())
    promotion.run()
    assert cut
    assert serves(cluster) == promotion.uri


def test_the_api_server_gone_for_long(
    make_cluster: MakeCluster, make_published: MakePublished, line: Line
) -> None:
    cluster = make_cluster()
    before = cluster.get()
    promotion = Promotion(
        cluster, make_published(), replace(ROLLOUT, timeout=5.0, restore_seconds=1.0)
    )
    cluster.ready = lambda document: cluster.kind.state(document).uri == BY_HAND or line.cut()
    with pytest.raises(QuantlibError, match="could not be restored") as failed:
        promotion.run()
    assert f"quantlib rollback --service tiny --namespace {cluster.namespace}" in str(failed.value)
    cluster.ready = lambda _: True
    line.mend()
    record = json.loads(cluster.annotations()["quantlib.io/promotion"])
    assert record["digest"] == f"sha256:{promotion.folder.name}"
    service = find_service(cluster.namespace, "tiny")
    with pytest.raises(QuantlibError, match="is under way"):
        roll_back(service, ROLLOUT, promotion.say)
    abandon(cluster)
    roll_back(service, ROLLOUT, promotion.say)
    assert cluster.get()["spec"] == before["spec"]
    assert "quantlib.io/promotion" not in cluster.annotations()


def abandon(cluster: Cluster) -> None:
    """Makes a record old."""
    record = json.loads(cluster.annotations()["quantlib.io/promotion"])
    record["renewed"] = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    cluster.merge({"metadata": {"annotations": {"quantlib.io/promotion": json.dumps(record)}}})


@pytest.mark.parametrize(
    ("mode", "at"),
    [(mode, at) for mode in ("Standard", "Knative") for at in range(4)]
    + [(None, at) for at in range(3)],
)
def test_interrupted_at_every_step(
    make_cluster: MakeCluster,
    make_published: MakePublished,
    fake: FakeOpenAI,
    mode: str | None,
    at: int,
) -> None:
    cluster = make_cluster(mode=mode)
    rollout = ROLLOUT
    if mode:
        rollout = replace(rollout, percents=(10,), canary_url=fake.url)
        wait_for_mode(cluster)
    before = cluster.get()
    promotion = Promotion(cluster, make_published(), rollout, interrupt_at=at)
    with pytest.raises(KeyboardInterrupt):
        promotion.run()
    require_restored(cluster, before)
    assert "interrupted" in cluster.annotations()["quantlib.io/last-promotion"]


def wait_for_mode(cluster: Cluster) -> None:
    while "deploymentMode" not in (cluster.get().get("status") or {}):
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_command(
    make_cluster: MakeCluster, make_published: MakePublished, number: signal.Signals
) -> None:
    cluster = make_cluster()
    before = cluster.get()
    cluster.ready = lambda document: cluster.kind.state(document).uri == BY_HAND
    folder = make_published()
    command = [sys.executable, "-m", "quantlib", "promote", str(folder), "--direct"]
    command += ["--service", "tiny", "--namespace", cluster.namespace, "--no-smoke-test"]
    command += ["--storage-uri", f"s3://models/tiny/{folder.name}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    )
    deadline = time.monotonic() + 60
    while serves(cluster) == BY_HAND:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), output
    assert f"serves {BY_HAND} as before" in output
    require_restored(cluster, before)


def test_of_two_at_once_one_wins(make_cluster: MakeCluster, make_published: MakePublished) -> None:
    cluster = make_cluster()
    first, second = (Promotion(cluster, make_published(seed)) for seed in ("one", "two"))
    refusals = []

    def ready(document: dict[str, Any]) -> bool:
        return bool(refusals) or cluster.kind.state(document).uri == BY_HAND

    def say(text: str) -> None:
        if not refusals and serves(cluster) != BY_HAND:
            with pytest.raises(QuantlibError) as refused:
                second.run()
            refusals.append(str(refused.value))

    cluster.ready = ready
    first.say = say  # type: ignore[method-assign]
    first.run()
    assert f"the promotion of {first.folder.name[:12]} by " in refusals[0]
    assert "is under way" in refusals[0]
    assert serves(cluster) == first.uri


def test_an_abandoned_promotion_is_gone_on_with(
    make_cluster: MakeCluster, make_published: MakePublished, line: Line
) -> None:
    cluster = make_cluster()
    rollout = replace(ROLLOUT, timeout=5.0, restore_seconds=0.1)
    promotion = Promotion(cluster, make_published(), rollout)
    cluster.ready = lambda document: cluster.kind.state(document).uri == BY_HAND or line.cut()
    with pytest.raises(QuantlibError):
        promotion.run()
    cluster.ready = lambda _: True
    line.mend()
    abandon(cluster)
    with pytest.raises(InvalidInputError, match="was abandoned"):
        Promotion(cluster, make_published("two")).run()
    replace(promotion, rollout=ROLLOUT).run()
    assert serves(cluster) == promotion.uri
    assert cluster.annotations()["quantlib.io/previous-uri"] == BY_HAND


def test_a_canary_in_standard_mode(
    make_cluster: MakeCluster, make_published: MakePublished, fake: FakeOpenAI
) -> None:
    cluster = make_cluster(mode="Standard")
    wait_for_mode(cluster)
    rollout = replace(ROLLOUT, percents=(0, 25), canary_url=fake.url)
    promotion = Promotion(cluster, make_published(), rollout)
    promotion.run()
    seen = [
        (
            spec["predictor"]["model"]["storageUri"],
            [
                (each["trafficPercent"], each["predictor"]["model"]["storageUri"])
                for each in spec.get("canary", ())
            ],
        )
        for spec in cluster.specs
    ]
    assert seen == [
        (BY_HAND, []),
        (BY_HAND, [(0, promotion.uri)]),
        (BY_HAND, [(25, promotion.uri)]),
        (promotion.uri, [(25, promotion.uri)]),
        (promotion.uri, []),
    ]
    canary = cluster.specs[1]["canary"][0]["predictor"]
    assert canary["model"]["resources"] == {"limits": {"nvidia.com/gpu": "1"}}


def test_a_canary_under_knative(
    make_cluster: MakeCluster, make_published: MakePublished, fake: FakeOpenAI
) -> None:
    cluster = make_cluster(mode="Knative")
    wait_for_mode(cluster)
    rollout = replace(ROLLOUT, percents=(10, 50), canary_url=fake.url)
    promotion = Promotion(cluster, make_published(), rollout)
    promotion.run()
    predictors = [spec["predictor"] for spec in cluster.specs]
    assert [each.get("canaryTrafficPercent") for each in predictors] == [None, 10, 50, None]
    assert predictors[1]["model"]["storageUri"] == promotion.uri


def test_a_failed_canary_under_knative_keeps_the_traffic_off(
    make_cluster: MakeCluster, make_published: MakePublished, fake: FakeOpenAI
) -> None:
    cluster = make_cluster(mode="Knative")
    wait_for_mode(cluster)
    before = cluster.get()
    fake.completions = {}
    rollout = replace(ROLLOUT, percents=(10,), canary_url=fake.url)
    with pytest.raises(QuantlibError, match="0 of 3 prompts"):
        Promotion(cluster, make_published(), rollout).run()
    predictors = [spec["predictor"] for spec in cluster.specs]
    assert [each.get("canaryTrafficPercent") for each in predictors][:3] == [None, 10, 0]
    require_restored(cluster, before)


def test_rolling_back_an_abandoned_canary_keeps_the_traffic_off(
    make_cluster: MakeCluster, make_published: MakePublished, fake: FakeOpenAI, line: Line
) -> None:
    cluster = make_cluster(mode="Knative")
    wait_for_mode(cluster)
    before = cluster.get()["spec"]
    rollout = replace(
        ROLLOUT, percents=(10,), canary_url=fake.url, timeout=0.5, restore_seconds=0.1
    )
    promotion = Promotion(cluster, make_published(), rollout)
    cluster.ready = lambda document: cluster.kind.state(document).uri == BY_HAND or line.cut()
    with pytest.raises(QuantlibError, match="could not be restored"):
        promotion.run()
    cluster.ready = lambda _: True
    line.mend()
    abandon(cluster)
    roll_back(find_service(cluster.namespace, "tiny"), ROLLOUT, promotion.say)
    percents = [spec["predictor"].get("canaryTrafficPercent") for spec in cluster.specs]
    assert percents[:3] == [None, 10, 0]
    assert cluster.get()["spec"] == before


@pytest.mark.parametrize(
    ("kind", "mode", "said"),
    [
        ("Deployment", None, "a Deployment has no canary"),
        ("LLMInferenceService", None, "a LLMInferenceService has no canary"),
        ("InferenceService", None, "neither the annotation"),
    ],
)
def test_a_canary_that_the_cluster_would_ignore_is_refused(
    make_cluster: MakeCluster,
    make_published: MakePublished,
    fake: FakeOpenAI,
    kind: str,
    mode: str | None,
    said: str,
) -> None:
    cluster = make_cluster(kind, mode=mode)
    rollout = replace(ROLLOUT, percents=(10,))
    with pytest.raises(InvalidInputError) as refused:
        Promotion(cluster, make_published(), rollout).run()
    assert said in str(refused.value)
    assert "--canary-url" in str(refused.value), "every refusal at once"
    assert serves(cluster) == BY_HAND
