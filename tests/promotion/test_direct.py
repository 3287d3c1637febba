"""Direct promotion on a real API server; the controller acts while promotion waits."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import kube_api
import pytest
from click.testing import CliRunner
from fake_openai import FakeOpenAI
from kubernetes import client, config
from promotion.cluster import (
    Cluster,
    Line,
    request,
)
from promotion.conftest import MakeCluster, MakePublished
from promotion.driver import BY_HAND, Promotion, act_as_account, hooked, require_restored, serves
from promotion.kserve import NEVER, Fate

from quantlib.cli.promote import promote
from quantlib.cli.rollback import rollback
from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.checks import Allowances
from quantlib.promotion.cluster import find_service
from quantlib.promotion.kinds import KINDS
from quantlib.promotion.record import STALE
from quantlib.promotion.restoring import roll_back
from quantlib.promotion.rollout import SETTLE_SECONDS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", KINDS)
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
    assert "20 of 20 probes" in cluster.events()[1][2]
    assert "serves sha256:" in promotion.run(), "the same again has nothing to do"
    assert len(cluster.events()) == 3

    service = find_service(cluster.namespace, "tiny")
    assert f"to {BY_HAND}" in roll_back(service, cluster.rollout(), promotion.say)
    assert cluster.get()["spec"] == before
    assert "quantlib.io/digest" not in cluster.annotations()
    assert cluster.events()[-1][1] == "RolledBack"
    with pytest.raises(InvalidInputError, match="nothing to go back to"):
        roll_back(service, cluster.rollout(), promotion.say)


IN_PLACE = "not ready after 60 s: 2 of 2 new pods are there, 2 of before, 2 available in all"


@pytest.mark.parametrize(
    ("mode", "said"),
    [(None, IN_PLACE), ("Standard", "dark launch: not ready after 60 s: 1 of 1 new pods")],
)
def test_pods_that_never_get_ready_while_those_before_answer(
    make_cluster: MakeCluster, make_published: MakePublished, mode: str | None, said: str
) -> None:
    cluster = make_cluster(mode=mode)
    before = cluster.get()
    promotion = Promotion(cluster, make_published(), {"timeout": 60.0})
    cluster.fates[promotion.uri] = NEVER
    with pytest.raises(QuantlibError, match=said) as failed:
        promotion.run()
    assert f"serves {BY_HAND} again, after " in str(failed.value)
    require_restored(cluster, before)


@pytest.mark.parametrize("percents", [(), (10, 50)])
def test_no_pods_start_but_those_of_the_new_checkpoint(
    make_cluster: MakeCluster,
    make_published: MakePublished,
    fake: FakeOpenAI,
    percents: tuple[int, ...],
) -> None:
    """KServe copies a service's annotations to its pods: what changes there starts new ones."""
    cluster = make_cluster(mode="Standard")
    waits = itertools.count()
    cluster.ready = lambda document: (
        cluster.kind.state(document).uri == BY_HAND
        or (
            next(waits) > STALE.total_seconds()  # the record is renewed meanwhile
        )
    )
    changes = {"percents": percents, "canary_url": fake.url}
    promotion = Promotion(cluster, make_published(), changes)
    promotion.run()
    cluster.look()
    assert len(cluster.pods.templates) == 3, "of before, of the canary, and new"
    roll_back(find_service(cluster.namespace, "tiny"), cluster.rollout(), promotion.say)
    cluster.look()
    assert len(cluster.pods.templates) == 4


@pytest.mark.parametrize(
    ("kind", "uri"),
    [*((kind, BY_HAND) for kind in KINDS), ("InferenceService", None)],
)
def test_ready_but_answering_nonsense(
    make_cluster: MakeCluster,
    make_published: MakePublished,
    fake: FakeOpenAI,
    kind: str,
    uri: str | None,
) -> None:
    cluster = make_cluster(kind)
    if uri is None:
        cluster.merge({"spec": {"predictor": {"model": {"storageUri": None}}}})
        cluster.look()
    before = cluster.get()
    fake.tokens = {}
    with pytest.raises(QuantlibError, match="0 of 20 probes"):
        Promotion(cluster, make_published()).run()
    require_restored(cluster, before)
    assert serves(cluster) == uri


def test_a_status_without_a_generation_has_to_stay_ready(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster(observes=False)
    looks = []

    def ready(document: dict[str, Any]) -> bool:
        if cluster.kind.state(document).uri != BY_HAND:
            looks.append(cluster.clock.monotonic())
        return len(looks) not in (5, 6)

    cluster.ready = ready
    Promotion(cluster, make_published()).run()
    unready = looks[5]
    assert looks[-1] - unready >= SETTLE_SECONDS


def test_an_absent_service(make_cluster: MakeCluster, make_published: MakePublished) -> None:
    cluster = make_cluster()
    cluster.call("DELETE", cluster.path)
    with pytest.raises(InvalidInputError, match="has no InferenceService or LLMInferenceService"):
        Promotion(cluster, make_published()).run()


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
    act_as_account(cluster, line, tmp_path, verbs)
    with pytest.raises(InvalidInputError) as refused:
        Promotion(cluster, make_published()).run()
    assert f"no permission to {missing} inferenceservices" in str(refused.value)
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
    cluster = make_cluster(kind, mode="Standard")
    act_as_account(cluster, line, tmp_path)
    promotion = Promotion(cluster, make_published())
    cluster.fates[promotion.uri] = Fate(10.0)
    promotion.run()
    assert serves(cluster) == promotion.uri
    said = "\n".join(promotion.said)
    assert "no event was left" not in said
    assert "may not" not in said
    assert ("dark launch: applying" in said) == (kind == "InferenceService")
    assert cluster.events()[-1][1] == "Promoted"


RUNTIME_PATH = "/apis/serving.kserve.io/v1alpha1/clusterservingruntimes"


@pytest.fixture
def runtime(server: kube_api.ApiServer) -> Iterator[Callable[[str], None]]:
    """Lets the cluster's only runtime have an image."""
    api = config.new_client_from_config(str(server.kubeconfig))
    made = []

    def make(image: str) -> None:
        body = {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "ClusterServingRuntime",
            "metadata": {"name": "vllm"},
            "spec": {
                "supportedModelFormats": [{"name": "vllm", "version": "1", "autoSelect": True}],
                "containers": [{"name": "kserve-container", "image": image}],
            },
        }
        made.append(request(api, "POST", RUNTIME_PATH, body))

    yield make
    for _ in made:
        request(api, "DELETE", f"{RUNTIME_PATH}/vllm")


def without_an_image(cluster: Cluster) -> None:
    cluster.merge({"spec": {"predictor": {"model": {"image": None}}}})
    cluster.look()


@pytest.mark.parametrize("asked", [None, "vllm"])
def test_a_runtime_of_the_cluster_says_its_version(
    make_cluster: MakeCluster,
    make_published: MakePublished,
    runtime: Callable[[str], None],
    line: Line,
    tmp_path: Path,
    asked: str | None,
) -> None:
    cluster = make_cluster()
    without_an_image(cluster)
    cluster.merge({"spec": {"predictor": {"model": {"runtime": asked}}}})
    cluster.look()
    act_as_account(cluster, line, tmp_path)
    promotion = Promotion(cluster, make_published())
    with pytest.raises(InvalidInputError, match="is not known") as refused:
        promotion.run()
    assert "--runtime-version" in str(refused.value)
    runtime("vllm/vllm-openai:v0.31.1")
    with pytest.raises(InvalidInputError, match=r"ServingRuntime vllm runs vLLM 0\.31\.1"):
        promotion.run()
    model = {"runtimeVersion": "v0.32.0"}
    cluster.merge({"spec": {"predictor": {"model": model}}})
    cluster.look()
    promotion.run()
    assert serves(cluster) == promotion.uri


def test_runtimes_that_may_not_be_read(
    make_cluster: MakeCluster, make_published: MakePublished, line: Line, tmp_path: Path
) -> None:
    cluster = make_cluster()
    without_an_image(cluster)
    act_as_account(cluster, line, tmp_path, ["get", "patch"])
    promotion = Promotion(cluster, make_published())
    with pytest.raises(InvalidInputError, match="no permission to get servingruntimes") as refused:
        promotion.run()
    assert 'cannot list resource "servingruntimes"' in str(refused.value)
    assert "--runtime-version" in str(refused.value)
    said = replace(promotion, allowances=Allowances(runtime_version="0.32.0"))
    said.run()
    assert serves(cluster) == promotion.uri


def test_an_api_server_that_offers_the_older_version_only(
    make_cluster: MakeCluster, make_published: MakePublished, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS["LLMInferenceService"]
    absent, older = "serving.kserve.io/v9", "serving.kserve.io/v1alpha1"
    assert kind.api_versions == ("serving.kserve.io/v1alpha2", older)
    monkeypatch.setitem(KINDS, kind.name, replace(kind, api_versions=(absent, older)))
    cluster = make_cluster(kind.name, api_version=older)
    before = cluster.get()["spec"]
    promotion = Promotion(cluster, make_published())
    promotion.run()
    assert serves(cluster) == promotion.uri
    service = find_service(cluster.namespace, "tiny")
    assert service.api_version == older
    roll_back(service, cluster.rollout(), promotion.say)
    assert cluster.get()["spec"] == before


def test_a_rollback_that_does_not_get_ready_is_told_and_done(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster()
    promotion = Promotion(cluster, make_published())
    promotion.run()
    cluster.ready = lambda _: False
    service = find_service(cluster.namespace, "tiny")
    with pytest.raises(QuantlibError, match="not ready after 60 s"):
        roll_back(service, cluster.rollout(timeout=60.0), promotion.say)
    assert serves(cluster) == BY_HAND
    annotations = cluster.annotations()
    assert "quantlib.io/promotion" not in annotations
    assert "not ready after 60 s" in annotations["quantlib.io/last-promotion"]
    assert cluster.events()[-1][:2] == ("Warning", "RolledBack")


def test_the_commands_exit_with_0(make_cluster: MakeCluster, make_published: MakePublished) -> None:
    cluster = make_cluster()
    promotion = Promotion(cluster, make_published())
    promotion.run()
    words = ["--service", "tiny", "--namespace", cluster.namespace]
    options = ["--direct", "--no-smoke-test", "--storage-uri", promotion.uri]
    again = CliRunner().invoke(promote, [str(promotion.folder), *words, *options])
    assert again.exit_code == 0, again.exception
    assert f"serves sha256:{promotion.folder.name} already" in again.output
    with controlled(cluster):
        back = CliRunner().invoke(rollback, words)
    assert back.exit_code == 0, back.exception
    assert f"to {BY_HAND}" in back.output
    assert serves(cluster) == BY_HAND


@contextmanager
def controlled(cluster: Cluster) -> Iterator[None]:
    """The controller at work beside a command, which waits by the machine's clock."""
    done = threading.Event()

    def control() -> None:
        while not done.wait(0.2):
            cluster.look()

    thread = threading.Thread(target=control)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_checkpoint_that_is_older_than_what_serves(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster()
    newer = Promotion(cluster, make_published("new", day=2))
    older = Promotion(cluster, make_published("old", day=1))
    newer.run()
    with pytest.raises(InvalidInputError, match="before what serves now"):
        older.run()
    assert serves(cluster) == newer.uri
    assert "quantlib.io/promotion" not in cluster.annotations()
    replace(older, allowances=Allowances(downgrade=True)).run()
    assert serves(cluster) == older.uri


def test_a_webhook_that_refuses_is_no_missing_permission(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster()

    def deny(method: str) -> None:
        if method == "PATCH":
            denied = client.ApiException(status=403)
            denied.body = json.dumps({"message": 'admission webhook "a" denied the request: b'})
            raise denied

    service = hooked(find_service(cluster.namespace, "tiny"), before=deny)
    with pytest.raises(InvalidInputError, match="the cluster refuses that: admission webhook"):
        Promotion(cluster, make_published()).run(service)
    assert serves(cluster) == BY_HAND


def test_a_canary_under_knative(
    make_cluster: MakeCluster, make_published: MakePublished, canary: Callable[[Cluster], str]
) -> None:
    cluster = make_cluster(mode="Knative")
    changes = {"percents": (10, 50), "canary_url": canary(cluster)}
    promotion = Promotion(cluster, make_published(), changes)
    promotion.run()
    lines = [event[2] for event in cluster.events() if event[1] == "PromotionStep"]
    assert "answered by the canary (50 % asked)" in lines[1]
    predictors = [spec["predictor"] for spec in cluster.specs]
    assert [each.get("canaryTrafficPercent") for each in predictors] == [None, 10, 50, None]
    assert predictors[1]["model"]["storageUri"] == promotion.uri


def test_a_failed_canary_under_knative_keeps_the_traffic_off(
    make_cluster: MakeCluster, make_published: MakePublished, fake: FakeOpenAI
) -> None:
    cluster = make_cluster(mode="Knative")
    before = cluster.get()
    fake.completions = {}
    changes = {"percents": (10,), "canary_url": fake.url}
    with pytest.raises(QuantlibError, match="0 of 3 prompts"):
        Promotion(cluster, make_published(), changes).run()
    predictors = [spec["predictor"] for spec in cluster.specs]
    assert [each.get("canaryTrafficPercent") for each in predictors][:3] == [None, 10, 0]
    require_restored(cluster, before)


def test_a_canary_of_somebody_else(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster(mode="Knative")
    promotion = Promotion(cluster, make_published())
    cluster.merge({"spec": {"predictor": {"canaryTrafficPercent": 20}}})
    with pytest.raises(InvalidInputError, match="it has a canary that is not ours"):
        promotion.run()
    assert serves(cluster) == BY_HAND
    cluster.merge({"spec": {"predictor": {"canaryTrafficPercent": 100}}})
    promotion.run()
    assert serves(cluster) == promotion.uri


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Deployment", "a Deployment has no canary"),
        ("LLMInferenceService", "a LLMInferenceService has no canary"),
        ("InferenceService", "neither the annotation"),
    ],
)
def test_a_canary_that_the_cluster_would_ignore_is_refused(
    make_cluster: MakeCluster, make_published: MakePublished, kind: str, said: str
) -> None:
    cluster = make_cluster(kind)
    with pytest.raises(InvalidInputError, match=said):
        Promotion(cluster, make_published(), {"percents": (10,)}).run()
    assert serves(cluster) == BY_HAND
