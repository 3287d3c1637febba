"""A canary of an LLMInferenceService, between which and the service KServe splits traffic."""

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_openai import FakeOpenAI, fake_openai
from promotion.answers import answer_as_expected
from promotion.cluster import Line, existing, install_routes
from promotion.conftest import MakePromotion
from promotion.driver import (
    BY_HAND,
    Failing,
    Promotion,
    act_as_account,
    hooked,
    killed,
    require_restored,
    serves,
)
from promotion.kserve import NEVER
from promotion.kserve_llm import Router
from promotion.services import LLM_INFERENCE_SERVICE
from urllib3.exceptions import ProtocolError

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.llm_canary import (
    canary_of,
    not_sharing,
    shared_url,
    sharing,
    why_no_share,
)

WRITES = ("PATCH", "POST", "DELETE")
STABLE, CANARY = "tiny-kserve-workload-svc", "tiny-canary-kserve-workload-svc"


def service(**spec: Any) -> Any:
    document = yaml.safe_load(LLM_INFERENCE_SERVICE)
    document["metadata"]["namespace"] = "serving"
    document["spec"] |= {"router": {"route": {}, "gateway": {}, "scheduler": {}}} | spec
    return document


@pytest.mark.parametrize(
    ("router", "said"),
    [
        ({"route": {}}, None),
        ({"route": {"http": {}}, "gateway": {}, "scheduler": {}}, None),
        (None, "has no spec.router.route"),
        ({"gateway": {}}, "has no spec.router.route"),
        ({"route": {}, "ingress": {}}, "spec.router.ingress"),
        ({"route": {"http": {"refs": [{"name": "ours"}]}}}, "its own, by spec.router.route.http.r"),
        ({"route": {"http": {"spec": {"rules": [{}]}}}}, "its own, by spec.router.route.http.s"),
        ({"route": {"group": "ours", "weight": 9}}, "in the group ours already"),
    ],
)
def test_what_kserve_splits(router: Any, said: str | None) -> None:
    found = why_no_share(service(router=router))
    assert found is None if said is None else said in str(found)


def test_a_share_and_back() -> None:
    before = service()
    shared = sharing(before, 10)
    assert shared["spec"]["router"]["route"] == {"group": "tiny-canary", "weight": 90}
    assert not_sharing(sharing(shared, 50)) == before
    of_others = service(router={"route": {"group": "ours", "weight": 9}})
    assert not_sharing(of_others) == of_others


def test_what_stands_beside() -> None:
    before = service(replicas=4)
    served = service(replicas=4, model={"uri": "s3://new/"})
    applied = "kubectl.kubernetes.io/last-applied-configuration"
    served["metadata"]["annotations"] = {"a": "1", applied: "{}"}
    dark = canary_of(before, served, None)
    assert dark["metadata"] == {
        **{"name": "tiny-canary", "namespace": "serving", "annotations": {"a": "1"}}
    }
    assert dark["spec"]["model"] == {"name": "tiny", "uri": "s3://new/"}, "KServe's default name"
    assert (dark["spec"]["replicas"], "router" in dark["spec"]) == (1, False)
    half = canary_of(before, served, 50)
    assert half["spec"]["replicas"] == 2
    route = {"group": "tiny-canary", "weight": 50}
    assert half["spec"]["router"] == {"route": route, "gateway": {}, "scheduler": {}}
    scaled = service(scaling={"minReplicas": 3, "maxReplicas": 9})
    spec = canary_of(scaled, scaled, 50)["spec"]
    assert (spec["replicas"], "scaling" in spec) == (2, False), "KServe refuses both"


def test_where_what_is_split_comes_in() -> None:
    urls = ["http://g/serving/tiny", "http://g/publishers/serving/models/tiny", "http://g/"]
    document = service() | {"status": {"addresses": [{"url": url} for url in urls]}}
    assert shared_url(document) == urls[1]
    assert shared_url(service()) is None


@pytest.fixture
def gateway() -> Iterator[FakeOpenAI]:
    with fake_openai() as gateway:
        yield gateway


@pytest.fixture
def new() -> Iterator[FakeOpenAI]:
    with fake_openai() as new:
        answer_as_expected(new)
        yield new


MakeRouted = Any


@pytest.fixture
def make_routed(
    make_promotion: MakePromotion, fake: FakeOpenAI, new: FakeOpenAI, gateway: FakeOpenAI
) -> MakeRouted:
    """A promotion of a service with a route, whose gateway heeds the weights or does not."""

    def make(router: Any, heeded: bool = True, **changes: Any) -> tuple[Promotion, Router]:
        promotion = make_promotion("LLMInferenceService", changes={"percents": (10, 50)} | changes)
        cluster = promotion.cluster
        install_routes(cluster.server)
        cluster.router = played = Router(cluster.pods, cluster.path.rpartition("/")[0], gateway.url)
        cluster.merge({"spec": {"router": router, "replicas": 2}})
        cluster.look()
        cluster.look()
        for prompt in fake.completions:
            fake.completions[prompt] += " and so on"
            new.completions[prompt] += " and not so"
        cluster.urls |= {promotion.uri: new.url, BY_HAND: fake.url}
        turns = itertools.count()

        def backend() -> FakeOpenAI:
            if serves(cluster) == promotion.uri:
                return new
            weights = dict(played.weights("tiny") or [])
            share = 100 * weights.get(CANARY, 0) / (sum(weights.values()) or 1)
            return new if heeded and next(turns) % 100 < share else fake

        gateway.backend = backend
        return promotion, played

    return make


def beside(promotion: Promotion) -> Any:
    return existing(promotion.cluster.api, f"{promotion.cluster.path}-canary")


MANAGED = {"route": {}, "gateway": {}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill", [None, "of 20 probes", "10 % of traffic: applying", "all traffic: applying"]
)
def test_the_route_is_split_and_the_share_is_measured(
    make_routed: MakeRouted, monkeypatch: pytest.MonkeyPatch, kill: str | None
) -> None:
    promotion, router = make_routed(MANAGED)
    cluster = promotion.cluster
    before = cluster.get()
    assert router.weights("tiny") == [(STABLE, 1)]
    weights: list[Any] = []
    stable: set[tuple[int, int]] = set()

    def note() -> None:
        told = sorted(router.weights("tiny") or [], reverse=True)
        if told not in weights[-1:]:
            weights.append(told)
        if beside(promotion):
            behind = Counter(cluster.pods.sources("tiny-kserve"))
            stable.add((behind[BY_HAND], behind[promotion.uri]))

    cluster.clock.waiting.append(note)
    if kill:
        killed(promotion, monkeypatch, kill)
        assert beside(promotion)
    promotion.run()
    assert stable == {(2, 0)}, "the pods that serve stay as they are while a canary is there"
    assert [each for each in weights if len(each) == 2][-1] == [(STABLE, 50), (CANARY, 50)]
    assert kill or weights == [
        [(STABLE, 1)],
        [(STABLE, 90), (CANARY, 10)],
        [(STABLE, 50), (CANARY, 50)],
        [(STABLE, 50)],
        [(STABLE, 1)],
    ]
    lines = [event[2] for event in cluster.events() if event[1] == "PromotionStep"]
    said = "requests were answered by the canary (50 % asked)"
    assert kill == "all traffic: applying" or any(said in line for line in lines)
    assert serves(cluster) == promotion.uri
    assert beside(promotion) is None
    assert cluster.get()["spec"]["router"] == MANAGED
    promotion.back()
    assert cluster.get()["spec"] == before["spec"]


@pytest.mark.slow
def test_a_share_that_no_gateway_gives_ends_it(make_routed: MakeRouted) -> None:
    promotion, router = make_routed(MANAGED, heeded=False)
    cluster = promotion.cluster
    before = cluster.get()
    with pytest.raises(QuantlibError, match="0 of 200 requests were answered"):
        promotion.run()
    require_restored(cluster, before)
    assert beside(promotion) is None
    cluster.look()
    assert router.weights("tiny") == [(STABLE, 1)]


@pytest.mark.slow
def test_interrupted_at_every_write(make_routed: MakeRouted) -> None:
    promotion, _ = make_routed(MANAGED, percents=(10,))
    cluster = promotion.cluster
    before = cluster.get()
    for at in itertools.count():
        interrupt = Failing(KeyboardInterrupt(), at, WRITES)
        with suppress(KeyboardInterrupt):
            promotion.run(hooked(promotion.service(), interrupt))
        assert beside(promotion) is None
        assert "quantlib.io/promotion" not in cluster.annotations()
        if not interrupt.has_failed or serves(cluster) == promotion.uri:
            break
        assert cluster.get()["spec"] == before["spec"]
    assert at > 10


@pytest.mark.slow
def test_the_answer_to_every_write_is_lost(make_routed: MakeRouted) -> None:
    promotion, _ = make_routed(MANAGED, percents=(10,))
    cluster = promotion.cluster
    before = cluster.get()
    for at in itertools.count(4, 3):
        lose = Failing(ProtocolError("lost"), at, WRITES)
        with suppress(QuantlibError):  # what is asked of the new checkpoint is not asked again
            promotion.run(hooked(promotion.service(), after=lose))
        assert beside(promotion) is None
        assert "quantlib.io/promotion" not in cluster.annotations()
        if not lose.has_failed:
            break
        if serves(cluster) == promotion.uri:
            promotion.back()
        assert cluster.get()["spec"] == before["spec"]
    assert at > 10


@pytest.mark.slow
def test_a_rollback_ends_what_was_killed(
    make_routed: MakeRouted, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion, router = make_routed(MANAGED)
    cluster = promotion.cluster
    before = cluster.get()
    killed(promotion, monkeypatch, "50 % of traffic: applying")
    assert sorted(router.weights("tiny") or []) == [(CANARY, 10), (STABLE, 90)]
    promotion.back()
    assert cluster.get()["spec"] == before["spec"]
    assert beside(promotion) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("router", "said"),
    [(None, "has no spec.router.route"), ({"route": {"http": {"refs": [{"name": "x"}]}}}, "refs")],
)
def test_what_is_not_split_is_a_dark_launch_by_name(
    make_routed: MakeRouted, router: Any, said: str
) -> None:
    promotion, _ = make_routed(router)
    cluster = promotion.cluster
    before = cluster.get()
    promotion.run()
    (line,) = [line for line in promotion.said if "a dark launch" in line]
    assert said in line
    lines = [event[2] for event in cluster.events() if event[1] == "PromotionStep"]
    assert [line.partition(":")[0] for line in lines] == ["dark launch", "all traffic"]
    assert cluster.get()["spec"].get("router") == before["spec"].get("router")
    assert beside(promotion) is None


@pytest.mark.slow
def test_a_bad_checkpoint_never_answers_a_user(make_routed: MakeRouted, new: FakeOpenAI) -> None:
    promotion, _ = make_routed(MANAGED, percents=(0,))
    cluster = promotion.cluster
    before = cluster.get()
    new.tokens.clear()
    answered: set[str] = set()
    cluster.clock.waiting.append(lambda: answered.update(cluster.pods.sources("tiny-kserve")))
    with pytest.raises(QuantlibError, match="0 of 20 probes"):
        promotion.run()
    assert answered == {BY_HAND}
    require_restored(cluster, before)
    assert beside(promotion) is None


@pytest.mark.slow
def test_a_canary_of_somebody_else_is_left_alone(make_routed: MakeRouted) -> None:
    promotion, _ = make_routed(MANAGED)
    cluster = promotion.cluster
    before = cluster.get()
    theirs = yaml.safe_load(LLM_INFERENCE_SERVICE) | {"metadata": {"name": "tiny-canary"}}
    cluster.call("POST", cluster.path.rpartition("/")[0], theirs)
    with pytest.raises(InvalidInputError, match="tiny-canary: is there already"):
        promotion.run()
    assert cluster.get()["spec"] == before["spec"]
    promotion.changes["percents"] = ()
    promotion.run()
    assert serves(cluster) == promotion.uri
    assert beside(promotion)["spec"]["model"]["uri"] == BY_HAND


@pytest.mark.slow
def test_pods_of_before_are_not_taken_for_new_ones(make_routed: MakeRouted) -> None:
    promotion, _ = make_routed(MANAGED, percents=(), timeout=30.0)
    cluster = promotion.cluster
    cluster.fates[promotion.uri] = NEVER
    with pytest.raises(QuantlibError, match="not ready after 30 s"):
        promotion.run()


@pytest.mark.slow
def test_the_account_of_the_manifests_suffices(
    make_routed: MakeRouted, line: Line, tmp_path: Path
) -> None:
    promotion, _ = make_routed(MANAGED)
    act_as_account(promotion.cluster, line, tmp_path)
    promotion.run()
    assert serves(promotion.cluster) == promotion.uri
    assert beside(promotion) is None
