"""Direct promotion that is interrupted, overtaken or refused on its way: what is served then."""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeOpenAI
from kubernetes import client
from promotion.cluster import (
    Cluster,
    Line,
)
from promotion.conftest import MakeCluster, MakePublished
from promotion.driver import (
    BY_HAND,
    Promotion,
    abandon,
    act_as_account,
    hooked,
    require_restored,
    serves,
)
from urllib3.exceptions import ProtocolError

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.cluster import find_service
from quantlib.promotion.record import STALE, Held, Record
from quantlib.promotion.restoring import roll_back

pytestmark = pytest.mark.slow


def test_the_api_server_gone_for_a_while(
    make_cluster: MakeCluster, make_published: MakePublished, line: Line
) -> None:
    cluster = make_cluster()
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
    promotion = Promotion(cluster, make_published())
    promotion.run()
    assert looks.count(True) == 9
    assert serves(cluster) == promotion.uri


def test_the_api_server_gone_for_long(
    make_cluster: MakeCluster, make_published: MakePublished, line: Line
) -> None:
    cluster = make_cluster()
    before = cluster.get()
    promotion = Promotion(cluster, make_published(), {"timeout": 60.0, "restore_seconds": 10.0})
    abandon(promotion, line)
    record = json.loads(cluster.annotations()["quantlib.io/promotion"])
    assert record["digest"] == f"sha256:{promotion.folder.name}"
    service = find_service(cluster.namespace, "tiny")
    with pytest.raises(QuantlibError, match="is under way"):
        roll_back(service, cluster.rollout(), promotion.say)
    cluster.clock.sleep(STALE.total_seconds() + 1)
    roll_back(service, cluster.rollout(), promotion.say)
    assert cluster.get()["spec"] == before["spec"]
    assert "quantlib.io/promotion" not in cluster.annotations()


OBJECT = {"apiVersion": "v1", "kind": "Any", "spec": {}, "metadata": {}}


SOMEBODYS = {
    **{"holder": "me", "uid": "1", "digest": "sha256:1", "step": "begins"},
    **{"began": "2026-11-01T00:00:00Z", "renewed": "2026-11-01T00:00:00Z"},
    "before": json.dumps(OBJECT),
}


def test_a_record_is_read_as_it_was_written() -> None:
    record = Record.model_validate_json(json.dumps(SOMEBODYS))
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
def test_a_record_that_somebody_wrote_by_hand(
    make_cluster: MakeCluster, make_published: MakePublished, text: str
) -> None:
    cluster = make_cluster()
    service = find_service(cluster.namespace, "tiny")
    service.note({"quantlib.io/promotion": text}, service.notes())
    promotion = Promotion(cluster, make_published())
    with pytest.raises(InvalidInputError, match=r"tiny: holds no promotion that"):
        promotion.run()
    assert serves(cluster) == BY_HAND
    notes = {"quantlib.io/promotion": None, "quantlib.io/before": "by hand"}
    service.note(notes, service.notes(), cluster.get())
    with pytest.raises(InvalidInputError, match=r"before .*: holds no service that"):
        roll_back(service, cluster.rollout(), promotion.say)


def test_a_mistake_of_ours_is_undone_too(
    make_cluster: MakeCluster, make_published: MakePublished, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster()
    before = cluster.get()
    monkeypatch.setattr("quantlib.promotion.direct.smoke_test", lambda *_: 1 // 0)
    promotion = Promotion(cluster, make_published())
    with pytest.raises(ZeroDivisionError):
        promotion.run()
    service = find_service(cluster.namespace, "tiny")
    assert promotion.said[-1].startswith(f"{service} serves {BY_HAND} again, after ")
    require_restored(cluster, before)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_a_canary_interrupted_at_every_word(
    make_cluster: MakeCluster,
    make_published: MakePublished,
    canary: Callable[[Cluster], str],
    mode: str,
) -> None:
    cluster = make_cluster(mode=mode)
    changes = {"percents": (10,), "canary_url": canary(cluster)}
    before, folder = cluster.get(), make_published()
    for at in itertools.count():
        promotion = Promotion(cluster, folder, changes, interrupt_at=at)
        with suppress(KeyboardInterrupt):
            promotion.run()
        if serves(cluster) == promotion.uri:
            break
        require_restored(cluster, before)
        assert "interrupted" in cluster.annotations()["quantlib.io/last-promotion"]
    assert at > 4


def test_interrupted_at_every_request(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster()
    before, folder = cluster.get(), make_published()
    for at in itertools.count():
        requests = itertools.count()

        def interrupt(method: str, at: int = at, requests: Iterator[int] = requests) -> None:
            if next(requests) == at:
                raise KeyboardInterrupt

        promotion = Promotion(cluster, folder)
        service = hooked(find_service(cluster.namespace, "tiny"), before=interrupt)
        with suppress(KeyboardInterrupt):
            promotion.run(service)
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


def test_further_signals_do_not_cut_the_restoration_short(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster()
    before = cluster.get()
    promotion = Promotion(cluster, make_published(), interrupt_at=2)

    def insist(method: str) -> None:
        if len(promotion.said) > 2:
            signal.raise_signal(signal.SIGINT)

    service = hooked(find_service(cluster.namespace, "tiny"), before=insist)
    with pytest.raises(KeyboardInterrupt):
        promotion.run(service)
    assert any("written back first" in line for line in promotion.said)
    require_restored(cluster, before)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_api_server_fails_at_every_request(
    make_cluster: MakeCluster, make_published: MakePublished, when: str
) -> None:
    """Either the request or its answer is lost, which are alike for who asks."""
    cluster = make_cluster()
    before, folder = cluster.get()["spec"], make_published()
    for at in itertools.count():
        requests = itertools.count()

        def lose(method: str, at: int = at, requests: Iterator[int] = requests) -> None:
            if next(requests) == at:
                raise ProtocolError("lost")

        promotion = Promotion(cluster, folder)
        service = hooked(find_service(cluster.namespace, "tiny"), **{when: lose})
        failed = False
        try:
            promotion.run(service)
        except QuantlibError as error:
            assert "does not answer" in str(error)
            failed = True
        assert "quantlib.io/promotion" not in cluster.annotations()
        if failed:
            assert cluster.get()["spec"] == before
        elif next(requests) <= at:
            break
        else:
            assert serves(cluster) == promotion.uri
            roll_back(find_service(cluster.namespace, "tiny"), cluster.rollout(), promotion.say)
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


def test_of_two_that_begin_at_once_one_wins(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster()
    first, second = (Promotion(cluster, make_published(seed)) for seed in ("one", "two"))
    service = find_service(cluster.namespace, "tiny")

    def overtake(method: str) -> None:
        """Lets the other begin between the dry run and the record."""
        if method == "POST" and not cluster.annotations().get("quantlib.io/promotion"):
            document, clock = cluster.get(), cluster.clock
            record = Record(
                holder="other",
                uid=document["metadata"]["uid"],
                digest="sha256:2",
                step="begins",
                began=clock.stamp(),
                renewed=clock.utc(),
                before=document,
            )
            held = Held(service, record, cluster.rollout(), second.say)
            held.begin(document, service.notes())

    with pytest.raises(QuantlibError, match=r"the promotion of 2 by other .* was first"):
        first.run(hooked(service, before=overtake))
    assert serves(cluster) == BY_HAND
    assert json.loads(cluster.annotations()["quantlib.io/promotion"])["holder"] == "other"
    with pytest.raises(QuantlibError, match="is under way"):
        second.run()


def test_a_controller_that_writes_in_between_is_no_obstacle(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster()
    numbers = itertools.count()

    def meddle(method: str) -> None:
        if method == "PATCH" and (number := next(numbers)) % 3:
            cluster.merge({"metadata": {"labels": {"seen": str(number)}}})

    promotion = Promotion(cluster, make_published())
    promotion.run(hooked(find_service(cluster.namespace, "tiny"), before=meddle))
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
    roll_back(find_service(cluster.namespace, "tiny"), cluster.rollout(), promotion.say)
    percents = [spec["predictor"].get("canaryTrafficPercent") for spec in cluster.specs]
    assert percents[:3] == [None, 10, 0]
    assert cluster.get()["spec"] == before


def test_permissions_taken_away_in_between(
    make_cluster: MakeCluster, make_published: MakePublished, line: Line, tmp_path: Path
) -> None:
    cluster = make_cluster()
    act_as_account(cluster, line, tmp_path)

    def ready(document: dict[str, Any]) -> bool:
        if cluster.kind.state(document).uri != BY_HAND:
            cluster.server.kubectl("delete", "rolebindings", "--all", "-n", cluster.namespace)
        return False

    cluster.ready = ready
    with pytest.raises(QuantlibError, match=r"could not be restored: .* no permission") as failed:
        Promotion(cluster, make_published()).run()
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
def test_refused_at_each_write(
    make_cluster: MakeCluster, make_published: MakePublished, refusal: str, lasting: bool
) -> None:
    """Once, or from then on: what is served is the old or the new, and the same command goes on."""
    status, message = REFUSALS[refusal]
    cluster = make_cluster(mode="Standard")
    before, folder = cluster.get()["spec"], make_published()
    for at in itertools.count():
        writes = itertools.count()

        def refuse(method: str, at: int = at, writes: Iterator[int] = writes) -> None:
            if method in ("PATCH", "POST"):
                number = next(writes)
                if number == at or (lasting and number > at):
                    error = client.ApiException(status=status)
                    error.body = json.dumps({"message": message})
                    raise error

        promotion = Promotion(cluster, folder, {"restore_seconds": 5.0})
        service = hooked(find_service(cluster.namespace, "tiny"), before=refuse)
        try:
            promotion.run(service)
        except QuantlibError as error:
            assert error.exit_code in (1, 2)
        cluster.clock.sleep(STALE.total_seconds() + 1)
        now = cluster.get()["spec"]
        model = now["predictor"]["model"]
        assert model["storageUri"] in (BY_HAND, promotion.uri)
        assert model["resources"] == before["predictor"]["model"]["resources"]
        promotion.run()  # the same command finishes it
        assert serves(cluster) == promotion.uri
        assert "canary" not in cluster.get()["spec"]
        roll_back(find_service(cluster.namespace, "tiny"), cluster.rollout(), promotion.say)
        assert cluster.get()["spec"] == before
        if next(writes) <= at:
            break
    assert at > 8
