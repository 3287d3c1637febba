"""Direct promotion against a stand-in that does what KServe 0.20 was measured to do.

The API server is real; see :mod:`promotion.kserve` for what is played.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kube_api
import pytest
import yaml
from fake_openai import FakeOpenAI, fake_openai
from kubernetes import config
from promotion.answers import answer_as_expected
from promotion.cluster import existing, install_minimal, install_routes, request
from promotion.conftest import MakeCluster, MakePromotion, MakePublished
from promotion.driver import BY_HAND, Promotion, hooked, killed, require_restored, serves
from promotion.kserve import NEVER, Fate, refused

from quantlib.errors import InvalidInputError, QuantlibError

pytestmark = pytest.mark.slow

RICH = {
    "serviceAccountName": "reader",
    "minReplicas": 2,
    "nodeSelector": {"gpu": "yes"},
    "model": {"runtime": "kserve-vllmserver", "env": [{"name": "A", "value": "1"}]},
}


@pytest.fixture(scope="module")
def minimal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kube_api.ApiServer]:
    """An API server with the definitions of KServe's minimal chart: their spec is atomic."""
    if reason := kube_api.missing():
        pytest.skip(reason)
    with kube_api.api_server(tmp_path_factory.mktemp("minimal")) as server:
        install_minimal(server)
        runtime = {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "ClusterServingRuntime",
            "metadata": {"name": "kserve-vllmserver"},
            "spec": {"containers": [{"name": "kserve-container", "image": "vllm:v0.32.0"}]},
        }
        api = config.new_client_from_config(str(server.kubeconfig))
        plural = "clusterservingruntimes"
        request(api, "POST", f"/apis/serving.kserve.io/v1alpha1/{plural}", runtime)
        yield server


@pytest.mark.parametrize("in_place", [False, True])
def test_definitions_with_an_atomic_spec_lose_nothing(
    minimal: kube_api.ApiServer, make_promotion: MakePromotion, in_place: bool
) -> None:
    promotion = make_promotion(mode="Standard", server=minimal, changes={"in_place": in_place})
    cluster = promotion.cluster
    cluster.predict(RICH)
    before = cluster.get()
    cluster.fates[promotion.uri] = Fate(log="ValueError: no such scheme")
    with pytest.raises(QuantlibError, match="no such scheme"):
        promotion.run()
    require_restored(cluster, before)
    cluster.fates.clear()
    cluster.look()
    promotion.run()
    after = cluster.get()["spec"]["predictor"]
    model = before["spec"]["predictor"]["model"]
    ours = {name: after["model"][name] for name in ("storageUri", "args")}
    assert after == before["spec"]["predictor"] | {"model": model | ours}
    promotion.back()
    assert cluster.get()["spec"] == before["spec"]


@pytest.mark.parametrize("at", ["dry run", "write"])
def test_what_a_cluster_would_drop_is_refused_or_restored(
    make_promotion: MakePromotion, at: str
) -> None:
    """A webhook, or definitions that drop fields, take more than was asked for."""
    promotion = make_promotion()
    cluster = promotion.cluster
    before = cluster.get()

    def drop(options: Any, answer: Any) -> None:
        is_dry = ("dryRun", "All") in options.get("query_params", ())
        model = ((options["body"] or {}).get("spec") or {}).get("predictor", {}).get("model", {})
        if model.get("storageUri", BY_HAND) != BY_HAND and is_dry == (at == "dry run"):
            del answer["spec"]["predictor"]["model"]["resources"]

    service = hooked(promotion.service(), change=drop)
    with pytest.raises(QuantlibError, match=r"not as asked is spec\.predictor\.model\.resources"):
        promotion.run(service)
    assert cluster.get()["spec"] == before["spec"]
    assert "quantlib.io/digest" not in cluster.annotations()
    events = [event[1] for event in cluster.events()]
    assert events == ([] if at == "dry run" else ["PromotionStarted", "RolledBack"])


def test_new_pods_stand_beside_those_that_serve_and_take_none_of_them(
    make_promotion: MakePromotion,
) -> None:
    promotion = make_promotion(mode="Standard")
    cluster = promotion.cluster  # its minReplicas is 2
    cluster.fates[promotion.uri] = Fate(30.0)
    seen: list[tuple[int, int, bool]] = []

    def note() -> None:
        behind = Counter(cluster.pods.sources("tiny-predictor"))
        canary = cluster.pods.listed("pods", "isvc.tiny-canary-predictor")
        seen.append((behind[BY_HAND], behind[promotion.uri], bool(canary)))

    cluster.clock.waiting.append(note)
    promotion.run()
    assert all(old + new >= 2 for old, new, _ in seen), "never fewer than before"
    assert all(old == 2 for old, new, canary in seen if canary), "not while it is beside them"
    assert any(canary for *_, canary in seen)
    assert seen[-1] == (0, 2, False)
    assert len(cluster.pods.templates) == 3, "each Deployment's pods start once"
    tests = [event[2] for event in cluster.events() if event[1] == "PromotionStep"]
    assert [line.partition(":")[0] for line in tests] == ["dark launch", "all traffic"]


def test_a_bad_checkpoint_never_answers_a_user(make_promotion: MakePromotion) -> None:
    promotion = make_promotion(mode="Standard")
    cluster = promotion.cluster
    before = cluster.get()
    answered: set[str] = set()
    cluster.clock.waiting.append(lambda: answered.update(cluster.pods.sources("tiny-predictor")))
    with fake_openai() as bad:
        cluster.urls[promotion.uri] = bad.url
        with pytest.raises(QuantlibError, match="0 of 20 probes"):
            promotion.run()
    assert answered == {BY_HAND}
    require_restored(cluster, before)
    cluster.look()
    assert cluster.pods.find("deployments", "tiny-canary-predictor") is None


def test_a_canary_without_an_autoscaler_has_a_pod_at_0_percent(
    make_promotion: MakePromotion,
) -> None:
    promotion = make_promotion(mode="Standard", changes={"percents": (0,), "timeout": 60.0})
    cluster = promotion.cluster
    cluster.predict({"minReplicas": None})
    promotion.run()
    assert serves(cluster) == promotion.uri


def test_shares_that_nothing_splits_are_called_a_dark_launch(make_promotion: MakePromotion) -> None:
    promotion = make_promotion(mode="Standard", changes={"percents": (10, 50)})
    cluster = promotion.cluster
    promotion.run()
    assert any("no traffic, and no route" in line for line in promotion.said)
    asked = [spec["canary"][0]["trafficPercent"] for spec in cluster.specs if "canary" in spec]
    assert asked == [0]


ROUTE = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "HTTPRoute",
    "metadata": {"name": "tiny"},
    "spec": {
        "hostnames": ["tiny.example.org"],
        "rules": [{"backendRefs": [{"name": "tiny-predictor", "port": 80}]}],
    },
}


@pytest.mark.parametrize(("heeded", "kill"), [(True, False), (True, True), (False, False)])
def test_a_route_gives_shares_that_are_measured(
    make_promotion: MakePromotion,
    fake: FakeOpenAI,
    monkeypatch: pytest.MonkeyPatch,
    heeded: bool,
    kill: bool,
) -> None:
    promotion = make_promotion(mode="Standard", changes={"percents": (10, 50), "route": "tiny"})
    cluster = promotion.cluster
    install_routes(cluster.server)
    routes = f"/apis/gateway.networking.k8s.io/v1/namespaces/{cluster.namespace}/httproutes"
    cluster.call("POST", routes, ROUTE)
    turns = itertools.count()
    weights: list[list[int]] = []

    def rules() -> Any:
        return cluster.call("GET", f"{routes}/tiny")["spec"]["rules"]

    def note() -> None:
        (rule,) = rules()
        told = [backend.get("weight", 1) for backend in rule["backendRefs"]]
        if told not in weights[-1:]:
            weights.append(told)

    with fake_openai() as new, fake_openai() as gateway:
        answer_as_expected(new)
        for prompt in (*fake.completions,):
            fake.completions[prompt] += " and so on"
            new.completions[prompt] += " and not so"

        def through_the_gateway() -> FakeOpenAI:
            share = weights[-1][1] if heeded and weights and len(weights[-1]) == 2 else 0
            return new if next(turns) % 100 < share else fake

        gateway.backend = through_the_gateway
        cluster.clock.waiting.append(note)
        cluster.urls |= {promotion.uri: new.url, BY_HAND: fake.url}
        promotion.changes["url"] = gateway.url
        before = cluster.get()
        if heeded:
            promotion.heard = lambda _: note()
            if kill:
                killed(promotion, monkeypatch, "50 % of traffic: applying")
            promotion.run()
            assert weights[:3] == [[1], [90, 10], [50, 50]]
            lines = [event[2] for event in cluster.events() if event[1] == "PromotionStep"]
            assert "requests were answered by the canary (10 % asked)" in lines[1]
            assert [line.partition(":")[0] for line in lines] == [
                *("dark launch", "10 % of traffic", "50 % of traffic", "all traffic")
            ]
            assert serves(cluster) == promotion.uri
        else:
            with pytest.raises(QuantlibError, match="0 of 200 requests were answered"):
                promotion.run()
            require_restored(cluster, before)
    assert rules() == ROUTE["spec"]["rules"]  # type: ignore[index]


@pytest.mark.parametrize("when", ["dark launch: 1 of 1", "all traffic: 2 of 2"])
def test_gone_on_with_after_a_kill(
    make_promotion: MakePromotion, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    promotion = make_promotion(mode="Standard")
    cluster = promotion.cluster
    cluster.fates[promotion.uri] = Fate(300.0)
    killed(promotion, monkeypatch, when)
    began = json.loads(cluster.annotations()["quantlib.io/promotion"])["began"]
    born = {*cluster.pods.born}
    promotion.run()
    assert len(cluster.pods.templates) == 3, "nothing was rolled anew"
    assert Counter(cluster.pods.sources("tiny-predictor")) == {promotion.uri: 2}
    if when.startswith("all"):
        assert {*cluster.pods.born} == born, "those that were starting are those that serve"
    assert cluster.annotations()["quantlib.io/promoted-at"] == began


def test_restored_is_said_when_what_was_before_answers(
    make_promotion: MakePromotion, fake: FakeOpenAI
) -> None:
    promotion = make_promotion(mode="Standard", changes={"in_place": True})
    cluster = promotion.cluster
    before = cluster.get()
    with fake_openai() as bad:
        cluster.urls |= {promotion.uri: bad.url, BY_HAND: fake.url}
        cluster.url = None
        cluster.merge({"status": {"url": None}}, "/status")
        cluster.fates[BY_HAND] = Fate(200.0)
        with pytest.raises(QuantlibError, match=f"serves {BY_HAND} again, after") as failed:
            promotion.run()
    assert Counter(cluster.pods.sources("tiny-predictor")) == {BY_HAND: 2}
    seconds = int(str(failed.value).rpartition("after ")[2].removesuffix(" s"))
    assert 200 <= seconds < 210
    assert any("tested while they answer users already" in line for line in promotion.said)
    require_restored(cluster, before)


@pytest.mark.parametrize(
    ("fate", "within", "said"),
    [
        (Fate(None, log="INFO up\nValueError: no such scheme\n"), 50, "ValueError: no such scheme"),
        (Fate(None, waiting=("ImagePullBackOff", "no such image")), 60, "no such image"),
        (Fate(None, waiting=("CreateContainerConfigError", "no secret")), 60, "no secret"),
        (Fate(None, unschedulable="1 Insufficient nvidia.com/gpu"), 620, "1 Insufficient nvidia"),
    ],
)
@pytest.mark.parametrize("kind", ["InferenceService", "Deployment"])
def test_pods_say_why_they_do_not_get_ready(
    make_promotion: MakePromotion, kind: str, fate: Fate, within: float, said: str
) -> None:
    promotion = make_promotion(
        kind, mode="Standard", changes={"timeout": 600.0, "poll_seconds": 5.0}
    )
    cluster = promotion.cluster
    before = cluster.get()
    cluster.fates[promotion.uri] = fate
    started = cluster.clock.monotonic()
    with pytest.raises(QuantlibError, match=said):
        promotion.run()
    assert cluster.clock.monotonic() - started < within + 20
    require_restored(cluster, before)
    assert all("\n" not in line for line in promotion.said)
    assert all("\n" not in event[2] for event in cluster.events())


@pytest.mark.parametrize("kind", ["InferenceService", "Deployment"])
def test_a_slow_model_is_waited_for_beyond_a_deployments_deadline(
    make_promotion: MakePromotion, kind: str
) -> None:
    promotion = make_promotion(kind, changes={"poll_seconds": 20.0})
    cluster = promotion.cluster
    cluster.fates[promotion.uri] = Fate(900.0)
    promotion.run()
    assert serves(cluster) == promotion.uri


@pytest.mark.parametrize(
    ("changes", "model", "said"),
    [
        ({"url": "http://tiny.invalid"}, {}, "does not answer from here"),
        ({"url": "http://127.0.0.1:9"}, {}, "does not answer from here"),
        ({"verify_on_start": True}, {}, "verified-storage"),
        ({}, {"runtime": "gone"}, "asks for the runtime gone, which there is not"),
    ],
)
def test_what_cannot_come_is_found_before_anything_changes(
    make_promotion: MakePromotion, changes: Any, model: Any, said: str
) -> None:
    promotion = make_promotion(mode="Standard", changes=changes)
    cluster = promotion.cluster
    cluster.merge({"spec": {"predictor": {"model": model}}})
    before = cluster.get()
    with pytest.raises(InvalidInputError, match=said):
        promotion.run()
    assert cluster.get() == before
    assert "quantlib.io/promotion" not in cluster.annotations()


def test_a_service_made_anew_is_another_one(
    make_cluster: MakeCluster, make_published: MakePublished, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster(mode="Standard")
    body = {k: v for k, v in cluster.get().items() if k in ("apiVersion", "kind", "spec")}
    body["metadata"] = {"name": "tiny"}
    Promotion(cluster, make_published("first")).run()
    lease = existing(cluster.api, cluster.lease)
    assert lease is not None
    assert lease["metadata"]["ownerReferences"][0]["uid"] == cluster.get()["metadata"]["uid"]
    second = Promotion(cluster, make_published("second", day=1))
    killed(second, monkeypatch, "dark launch: applying")
    cluster.call("DELETE", cluster.path)
    cluster.call("POST", cluster.path.removesuffix("/tiny"), body)
    cluster.look()
    with pytest.raises(InvalidInputError, match="nothing to go back to"):
        second.back()
    assert serves(cluster) == BY_HAND
    third = Promotion(cluster, make_published("third", day=2))
    third.run()
    assert serves(cluster) == third.uri


STORAGE = "/apis/serving.kserve.io/v1alpha1/clusterstoragecontainers"
SHIPPED = Path(__file__).parents[2] / "manifests" / "components" / "verified-storage"


@pytest.fixture
def storage(server: kube_api.ApiServer) -> Iterator[None]:
    """The cluster has what verifies, for the models of these tests."""
    text = (SHIPPED / "storage-container.yaml").read_text()
    body = yaml.safe_load(text.replace("s3://quantlib/models/", "s3://models/tiny/"))
    api = config.new_client_from_config(str(server.kubeconfig))
    request(api, "POST", STORAGE, body)
    yield
    request(api, "DELETE", f"{STORAGE}/quantlib-verified")


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize("verify", [None, False])
def test_pods_verify_what_they_start_with_where_the_cluster_can(
    make_promotion: MakePromotion, verify: bool | None
) -> None:
    promotion = make_promotion(mode="Standard", changes={"verify_on_start": verify})
    cluster = promotion.cluster
    before = cluster.get()["spec"]
    promotion.run()
    name = "quantlib-verified" if verify is None else None
    asked = [spec for spec in cluster.specs if "canary" in spec]
    canaries = {spec["canary"][0]["predictor"].get("storageContainerName") for spec in asked}
    assert canaries == {name}
    assert {spec["predictor"].get("storageContainerName") for spec in asked} == {None}
    assert cluster.get()["spec"]["predictor"].get("storageContainerName") == name
    promotion.back()
    assert cluster.get()["spec"] == before


def test_an_account_that_may_not_read_pods_is_told_so(make_promotion: MakePromotion) -> None:
    promotion = make_promotion(mode="Standard", changes={"timeout": 20.0})
    cluster = promotion.cluster

    def blind(_: str, path: str) -> None:
        if "replicasets" in path:
            raise refused(403, "cannot list replicasets")

    cluster.fates[promotion.uri] = NEVER
    service = hooked(promotion.service(), before=blind)
    with pytest.raises(QuantlibError, match=r"may not be looked at .*cannot list replicasets"):
        promotion.run(service)
