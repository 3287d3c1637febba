"""Direct promotion on a real API server; the controller acts while promotion waits."""

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
from kubernetes import config
from promotion.cluster import Cluster, Line, request
from promotion.conftest import MakeCluster, MakePromotion, MakePublished
from promotion.driver import BY_HAND, Promotion, act_as_account, hooked, require_restored, serves
from promotion.kserve import NEVER, Fate, refused

from quantlib.cli.promote import promote
from quantlib.cli.rollback import rollback
from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.checks import Allowances
from quantlib.promotion.kinds import KINDS
from quantlib.promotion.record import STALE
from quantlib.promotion.rollout import SETTLE_SECONDS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_goes_over_and_back_by_hand(make_promotion: MakePromotion, kind: str) -> None:
    promotion = make_promotion(kind)
    cluster = promotion.cluster
    before = cluster.get()["spec"]
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

    assert f"to {BY_HAND}" in promotion.back()
    assert cluster.get()["spec"] == before
    assert "quantlib.io/digest" not in cluster.annotations()
    assert cluster.events()[-1][1] == "RolledBack"
    with pytest.raises(InvalidInputError, match="nothing to go back to"):
        promotion.back()


IN_PLACE = "not ready after 60 s: 2 of 2 new pods are there, 2 of before, 2 available in all"


@pytest.mark.parametrize(
    ("mode", "said"),
    [(None, IN_PLACE), ("Standard", "dark launch: not ready after 60 s: 1 of 1 new pods")],
)
def test_pods_that_never_get_ready_while_those_before_answer(
    make_promotion: MakePromotion, mode: str | None, said: str
) -> None:
    promotion = make_promotion(mode=mode, changes={"timeout": 60.0})
    cluster = promotion.cluster
    before = cluster.get()
    cluster.fates[promotion.uri] = NEVER
    with pytest.raises(QuantlibError, match=said) as failed:
        promotion.run()
    assert f"serves {BY_HAND} again, after " in str(failed.value)
    require_restored(cluster, before)


@pytest.mark.parametrize("percents", [(), (10, 50)])
def test_no_pods_start_but_those_of_the_new_checkpoint(
    make_promotion: MakePromotion, fake: FakeOpenAI, percents: tuple[int, ...]
) -> None:
    """KServe copies a service's annotations to its pods: what changes there starts new ones."""
    changes = {"percents": percents, "canary_url": fake.url}
    promotion = make_promotion(mode="Standard", changes=changes)
    cluster = promotion.cluster
    cluster.fates[promotion.uri] = Fate(2 * STALE.total_seconds())  # the record is renewed
    promotion.run()
    cluster.look()
    assert len(cluster.pods.templates) == 3, "of before, of the canary, and new"
    promotion.back()
    cluster.look()
    assert len(cluster.pods.templates) == 4


@pytest.mark.parametrize(
    ("kind", "uri"),
    [*((kind, BY_HAND) for kind in KINDS), ("InferenceService", None)],
)
def test_ready_but_answering_nonsense(
    make_promotion: MakePromotion, fake: FakeOpenAI, kind: str, uri: str | None
) -> None:
    promotion = make_promotion(kind)
    cluster = promotion.cluster
    if uri is None:
        cluster.predict({"model": {"storageUri": None}})
    before = cluster.get()
    fake.tokens = {}
    with pytest.raises(QuantlibError, match="0 of 20 probes"):
        promotion.run()
    require_restored(cluster, before)
    assert serves(cluster) == uri


def test_a_status_without_a_generation_has_to_stay_ready(make_promotion: MakePromotion) -> None:
    promotion = make_promotion(observes=False)
    cluster = promotion.cluster
    looks = []

    def ready(document: dict[str, Any]) -> bool:
        if cluster.kind.state(document).uri != BY_HAND:
            looks.append(cluster.clock.monotonic())
        return len(looks) not in (5, 6)

    cluster.ready = ready
    promotion.run()
    assert looks[-1] - looks[5] >= SETTLE_SECONDS


def test_an_absent_service(make_promotion: MakePromotion) -> None:
    promotion = make_promotion()
    cluster = promotion.cluster
    cluster.call("DELETE", cluster.path)
    with pytest.raises(InvalidInputError, match="has no InferenceService or LLMInferenceService"):
        promotion.run()


@pytest.mark.parametrize(("verbs", "missing"), [(["watch"], "get"), (["get"], "patch")])
def test_missing_permissions_are_found_before_anything_changes(
    make_promotion: MakePromotion, line: Line, tmp_path: Path, verbs: list[str], missing: str
) -> None:
    promotion = make_promotion()
    cluster = promotion.cluster
    before = cluster.get()["spec"]
    act_as_account(cluster, line, tmp_path, verbs)
    said = f"no permission to {missing} inferenceservices"
    with pytest.raises(InvalidInputError, match=said):
        promotion.run()
    assert cluster.get()["spec"] == before
    assert "quantlib.io/promotion" not in cluster.annotations()


@pytest.mark.parametrize("kind", ["InferenceService", "Deployment"])
def test_the_account_of_the_manifests_suffices(
    make_promotion: MakePromotion, line: Line, tmp_path: Path, kind: str
) -> None:
    promotion = make_promotion(kind, mode="Standard")
    cluster = promotion.cluster
    act_as_account(cluster, line, tmp_path)
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


@pytest.mark.parametrize("asked", [None, "vllm"])
def test_a_runtime_of_the_cluster_says_its_version(
    make_promotion: MakePromotion,
    runtime: Callable[[str], None],
    line: Line,
    tmp_path: Path,
    asked: str | None,
) -> None:
    promotion = make_promotion()
    cluster = promotion.cluster
    cluster.predict({"model": {"image": None, "runtime": asked}})
    act_as_account(cluster, line, tmp_path)
    with pytest.raises(InvalidInputError, match="is not known") as refused:
        promotion.run()
    assert "--runtime-version" in str(refused.value)
    runtime("vllm/vllm-openai:v0.31.1")
    with pytest.raises(InvalidInputError, match=r"ServingRuntime vllm runs vLLM 0\.31\.1"):
        promotion.run()
    cluster.predict({"model": {"runtimeVersion": "v0.32.0"}})
    promotion.run()
    assert serves(cluster) == promotion.uri


def test_runtimes_that_may_not_be_read(
    make_promotion: MakePromotion, line: Line, tmp_path: Path
) -> None:
    promotion = make_promotion()
    cluster = promotion.cluster
    cluster.predict({"model": {"image": None}})
    act_as_account(cluster, line, tmp_path, ["get", "patch"])
    with pytest.raises(InvalidInputError, match="no permission to get servingruntimes") as refused:
        promotion.run()
    assert 'cannot list resource "servingruntimes"' in str(refused.value)
    assert "--runtime-version" in str(refused.value)
    promotion.allowances = Allowances(runtime_version="0.32.0")
    promotion.run()
    assert serves(cluster) == promotion.uri


def test_an_api_server_that_offers_the_older_version_only(
    make_promotion: MakePromotion, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS["LLMInferenceService"]
    absent, older = "serving.kserve.io/v9", "serving.kserve.io/v1alpha1"
    assert kind.api_versions == ("serving.kserve.io/v1alpha2", older)
    monkeypatch.setitem(KINDS, kind.name, replace(kind, api_versions=(absent, older)))
    promotion = make_promotion(kind.name, api_version=older)
    cluster = promotion.cluster
    before = cluster.get()["spec"]
    promotion.run()
    assert serves(cluster) == promotion.uri
    assert promotion.service().api_version == older
    promotion.back()
    assert cluster.get()["spec"] == before


def test_a_rollback_that_does_not_get_ready_is_told_and_done(make_promotion: MakePromotion) -> None:
    promotion = make_promotion()
    cluster = promotion.cluster
    promotion.run()
    cluster.ready = lambda _: False
    with pytest.raises(QuantlibError, match="not ready after 60 s"):
        promotion.back(timeout=60.0)
    assert serves(cluster) == BY_HAND
    annotations = cluster.annotations()
    assert "quantlib.io/promotion" not in annotations
    assert "not ready after 60 s" in annotations["quantlib.io/last-promotion"]
    assert cluster.events()[-1][:2] == ("Warning", "RolledBack")


def test_the_commands_exit_with_0(make_promotion: MakePromotion) -> None:
    promotion = make_promotion()
    cluster = promotion.cluster
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


def test_a_webhook_that_refuses_is_no_missing_permission(make_promotion: MakePromotion) -> None:
    promotion = make_promotion()
    cluster = promotion.cluster

    def deny(method: str, _: str) -> None:
        if method == "PATCH":
            raise refused(403, 'admission webhook "a" denied the request: b')

    service = hooked(promotion.service(), before=deny)
    with pytest.raises(InvalidInputError, match="the cluster refuses that: admission webhook"):
        promotion.run(service)
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


def test_a_canary_of_somebody_else(make_promotion: MakePromotion) -> None:
    promotion = make_promotion(mode="Knative")
    cluster = promotion.cluster
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
        ("InferenceService", "neither the annotation"),
    ],
)
def test_a_canary_that_the_cluster_would_ignore_is_refused(
    make_promotion: MakePromotion, kind: str, said: str
) -> None:
    promotion = make_promotion(kind, changes={"percents": (10,)})
    cluster = promotion.cluster
    with pytest.raises(InvalidInputError, match=said):
        promotion.run()
    assert serves(cluster) == BY_HAND
