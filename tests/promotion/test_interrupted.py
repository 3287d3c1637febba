"""Direct promotion that is interrupted, overtaken or refused on its way: what is served then."""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeOpenAI
from promotion.cluster import Cluster, Line
from promotion.conftest import MakeCluster, MakePromotion, MakePublished
from promotion.driver import (
    BY_HAND,
    Failing,
    Promotion,
    abandon,
    act_as_account,
    hooked,
    require_restored,
    serves,
)
from promotion.kserve import refused
from urllib3.exceptions import ProtocolError

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.record import STALE, Held, PromotionRecord

pytestmark = pytest.mark.slow


def test_the_api_server_gone_for_a_while(make_promotion: MakePromotion, line: Line) -> None:
    promotion = make_promotion()
    cluster = promotion.cluster
    looks = []

    def ready(document: dict[str, Any]) -> bool:
        if cluster.kind.state(document).uri != BY_HAND:
            looks.append(line.is_cut)
            if len(looks) == 1:
                line.cut()
            if len(looks) == 10:
                line.mend()
        return not line.is_cut

    cluster.ready = ready
    promotion.run()
    assert looks.count(True) == 9
    assert serves(cluster) == promotion.uri


def test_the_api_server_gone_for_long(make_promotion: MakePromotion, line: Line) -> None:
    promotion = make_promotion(changes={"timeout": 60.0, "restore_seconds": 10.0})
    cluster = promotion.cluster
    before = cluster.get()
    abandon(promotion, line)
    record = json.loads(cluster.annotations()["quantlib.io/promotion"])
    assert record["digest"] == f"sha256:{promotion.folder.name}"
    with pytest.raises(QuantlibError, match="is under way"):
        promotion.back()
    cluster.clock.sleep(STALE.total_seconds() + 1)
    promotion.back()
    assert cluster.get()["spec"] == before["spec"]
    assert "quantlib.io/promotion" not in cluster.annotations()


OBJECT = {"apiVersion": "v1", "kind": "Any", "spec": {}, "metadata": {}}


SOMEBODYS = {
    **{"holder": "me", "uid": "1", "digest": "sha256:1", "step": "begins"},
    **{"began": "2026-11-01T00:00:00Z", "renewed": "2026-11-01T00:00:00Z"},
    "before": json.dumps(OBJECT),
}


def test_a_record_is_read_as_it_was_written() -> None:
    record = PromotionRecord.model_validate_json(json.dumps(SOMEBODYS))
    assert record.before == OBJECT
    assert json.loads(record.model_dump_json()) == SOMEBODYS | {"route": None}


@pytest.mark.parametrize(
    "text",
    [
        "by hand",
        "[]",
        "{}",
        json.dumps(SOMEBODYS | {"renewed": "2026-11-01T00:00:00"}),
        json.dumps(SOMEBODYS | {"before": "by hand"}),
        json.dumps(SOMEBODYS | {"before": "{}"}),
        json.dumps(SOMEBODYS | {"before": json.dumps(OBJECT | {"spec": 3})}),
    ],
)
def test_a_record_that_somebody_wrote_by_hand(make_promotion: MakePromotion, text: str) -> None:
    promotion = make_promotion()
    cluster = promotion.cluster
    service = promotion.service()
    service.annotate_lease({"quantlib.io/promotion": text}, service.lease())
    with pytest.raises(InvalidInputError, match=r"tiny: holds no promotion that"):
        promotion.run()
    assert serves(cluster) == BY_HAND
    notes = {"quantlib.io/promotion": None, "quantlib.io/before": "by hand"}
    service.annotate_lease(notes, service.lease(), cluster.get())
    with pytest.raises(InvalidInputError, match=r"before .*: holds no service that"):
        promotion.back()


def test_a_mistake_of_ours_is_undone_too(
    make_promotion: MakePromotion, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion = make_promotion()
    cluster = promotion.cluster
    before = cluster.get()
    monkeypatch.setattr("quantlib.promotion.direct.smoke_test", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        promotion.run()
    service = promotion.service()
    assert promotion.said[-1].startswith(f"{service} serves {BY_HAND} again, after ")
    require_restored(cluster, before)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_a_canary_interrupted_at_every_word(
    make_promotion: MakePromotion, canary: Callable[[Cluster], str], mode: str
) -> None:
    promotion = make_promotion(mode=mode, changes={"percents": (10,)})
    cluster, before = promotion.cluster, promotion.cluster.get()
    promotion.changes["canary_url"] = canary(cluster)
    for at in itertools.count():
        promotion.said, promotion.interrupt_at = [], at
        with suppress(KeyboardInterrupt):
            promotion.run()
        if serves(cluster) == promotion.uri:
            break
        require_restored(cluster, before)
        assert "interrupted" in cluster.annotations()["quantlib.io/last-promotion"]
    assert at > 4


def test_interrupted_at_every_request(make_promotion: MakePromotion) -> None:
    promotion = make_promotion()
    cluster, before = promotion.cluster, promotion.cluster.get()
    for at in itertools.count():
        with suppress(KeyboardInterrupt):
            promotion.run(hooked(promotion.service(), Failing(KeyboardInterrupt(), at)))
        annotations = cluster.annotations()
        assert "quantlib.io/promotion" not in annotations
        last = annotations.get("quantlib.io/last-promotion", "")
        if " promoted " in last:
            break
        assert cluster.get()["spec"] == before["spec"]
        begun = "PromotionStarted" in [event[1] for event in cluster.events()]
        assert not begun or "rolled back" in last
    assert serves(cluster) == promotion.uri
    assert at > 10


def test_further_signals_do_not_cut_the_restoration_short(make_promotion: MakePromotion) -> None:
    promotion = make_promotion()
    cluster, before = promotion.cluster, promotion.cluster.get()
    promotion.interrupt_at = 2

    def insist(*_: str) -> None:
        if len(promotion.said) > 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        promotion.run(hooked(promotion.service(), before=insist))
    assert any("written back first" in line for line in promotion.said)
    require_restored(cluster, before)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_api_server_fails_at_every_request(make_promotion: MakePromotion, when: str) -> None:
    """Either the request or its answer is lost, which are alike for who asks."""
    promotion = make_promotion()
    cluster, before = promotion.cluster, promotion.cluster.get()["spec"]
    for at in itertools.count():
        lose = Failing(ProtocolError("lost"), at)
        failed = False
        try:
            promotion.run(hooked(promotion.service(), **{when: lose}))
        except QuantlibError as error:
            assert "does not answer" in str(error)
            failed = True
        assert "quantlib.io/promotion" not in cluster.annotations()
        if failed:
            assert cluster.get()["spec"] == before
        elif not lose.has_failed:
            break
        else:
            assert serves(cluster) == promotion.uri
            promotion.back()
    assert at > 10


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
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Whoever runs the tests in the background may have them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while serves(cluster) == BY_HAND:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == (130 if number == signal.SIGINT else 143), output
    assert f"serves {BY_HAND} again, after " in output
    require_restored(cluster, before)


def test_of_two_at_once_one_wins(make_cluster: MakeCluster, make_published: MakePublished) -> None:
    cluster = make_cluster()
    first, second = (Promotion(cluster, make_published(seed)) for seed in ("one", "two"))
    refusals = []

    def say(text: str) -> None:
        if not refusals:
            with pytest.raises(QuantlibError) as refused:
                second.run()
            refusals.append(str(refused.value))

    first.say = say  # type: ignore[method-assign]
    first.run()
    assert f"the promotion of {first.folder.name[:12]} by " in refusals[0]
    assert "is under way" in refusals[0]
    assert serves(cluster) == first.uri


@pytest.mark.parametrize("abandoned", [False, True])
def test_of_two_that_begin_at_once_one_wins(make_promotion: MakePromotion, abandoned: bool) -> None:
    """The other begins, or is heard of again, while this one tries out what it is going to do."""
    promotion = make_promotion()
    cluster, clock = promotion.cluster, promotion.cluster.clock
    document, service, digest = cluster.get(), promotion.service(), promotion.folder.name
    record = PromotionRecord(
        holder="other",
        uid=document["metadata"]["uid"],
        digest=f"sha256:{digest}",
        step="begins",
        began=clock.stamp(),
        renewed=clock.utc(),
        before=document,
    )
    other = Held(service, record, cluster.rollout(), promotion.say)
    if abandoned:
        other.begin(document, {})
        clock.sleep(STALE.total_seconds() + 1)
    tried = itertools.count()

    def overtake(method: str, _: str) -> None:
        if method == "PATCH" and next(tried) == 0:
            if not abandoned:
                other.begin(document, {})
            other.renew("begins")

    with pytest.raises(QuantlibError, match=f"{digest[:12]} by other .* holds it now"):
        promotion.run(hooked(service, before=overtake))
    assert serves(cluster) == BY_HAND
    assert json.loads(cluster.annotations()["quantlib.io/promotion"])["holder"] == "other"
    with pytest.raises(QuantlibError, match="is under way"):
        promotion.run()


def test_a_controller_that_writes_in_between_is_no_obstacle(make_promotion: MakePromotion) -> None:
    promotion = make_promotion()
    cluster = promotion.cluster
    numbers = itertools.count()

    def meddle(method: str, _: str) -> None:
        if method == "PATCH" and (number := next(numbers)) % 3:
            cluster.merge({"metadata": {"labels": {"seen": str(number)}}})

    promotion.run(hooked(promotion.service(), before=meddle))
    assert serves(cluster) == promotion.uri


def test_an_abandoned_promotion_is_gone_on_with(
    make_cluster: MakeCluster, make_published: MakePublished, line: Line
) -> None:
    cluster = make_cluster()
    promotion = Promotion(cluster, make_published(), {"timeout": 60.0})
    abandon(promotion, line)
    cluster.clock.sleep(STALE.total_seconds() + 1)
    with pytest.raises(InvalidInputError, match="was abandoned"):
        Promotion(cluster, make_published("two")).run()
    promotion.run()
    assert serves(cluster) == promotion.uri
    assert cluster.annotations()["quantlib.io/previous-uri"] == BY_HAND


def test_rolling_back_an_abandoned_canary_keeps_the_traffic_off(
    make_cluster: MakeCluster, make_published: MakePublished, fake: FakeOpenAI, line: Line
) -> None:
    cluster = make_cluster(mode="Knative")
    before = cluster.get()["spec"]
    changes = {"percents": (10,), "canary_url": fake.url, "timeout": 60.0}
    promotion = Promotion(cluster, make_published(), changes)
    abandon(promotion, line)
    cluster.clock.sleep(STALE.total_seconds() + 1)
    promotion.back()
    percents = [spec["predictor"].get("canaryTrafficPercent") for spec in cluster.specs]
    assert percents[:3] == [None, 10, 0]
    assert cluster.get()["spec"] == before


def test_permissions_taken_away_in_between(
    make_promotion: MakePromotion, line: Line, tmp_path: Path
) -> None:
    promotion = make_promotion()
    cluster = promotion.cluster
    act_as_account(cluster, line, tmp_path)

    def ready(document: dict[str, Any]) -> bool:
        if cluster.kind.state(document).uri != BY_HAND:
            cluster.server.kubectl("delete", "rolebindings", "--all", "-n", cluster.namespace)
        return False

    cluster.ready = ready
    with pytest.raises(QuantlibError, match=r"could not be restored: .* no permission") as failed:
        promotion.run()
    assert f"quantlib rollback --service tiny --namespace {cluster.namespace}" in str(failed.value)
    assert failed.value.exit_code == 1


REFUSALS = {
    "conflict": (409, "the object has been modified"),
    "webhook": (403, 'admission webhook "policy" denied the request: no'),
    "quota": (403, 'pods "x" is forbidden: exceeded quota: gpus'),
    "expired token": (401, "Unauthorized"),
    "lost server": (503, "the server is currently unable to handle the request"),
}


@pytest.mark.parametrize(
    ("refusal", "lasting"),
    [
        ("conflict", False),
        ("webhook", False),
        ("quota", True),
        ("expired token", True),
        ("lost server", False),
    ],
)
def test_refused_at_each_write(make_promotion: MakePromotion, refusal: str, lasting: bool) -> None:
    """Once, or from then on: what is served is the old or the new, and the same command goes on."""
    promotion = make_promotion(mode="Standard", changes={"restore_seconds": 5.0})
    cluster, before = promotion.cluster, promotion.cluster.get()["spec"]
    for at in itertools.count():
        refuse = Failing(refused(*REFUSALS[refusal]), at, ("PATCH", "POST"), lasting)
        try:
            promotion.run(hooked(promotion.service(), before=refuse))
        except QuantlibError as error:
            assert error.exit_code in (1, 2)
        cluster.clock.sleep(STALE.total_seconds() + 1)
        model = cluster.get()["spec"]["predictor"]["model"]
        assert model["storageUri"] in (BY_HAND, promotion.uri)
        assert model["resources"] == before["predictor"]["model"]["resources"]
        promotion.run()  # the same command finishes it
        assert serves(cluster) == promotion.uri
        assert "canary" not in cluster.get()["spec"]
        promotion.back()
        assert cluster.get()["spec"] == before
        if not refuse.has_failed:
            break
    assert at > 8
