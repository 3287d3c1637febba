"""Direct promotion on a real API server; the controller acts while promotion waits.

In one file, long as it is: the server starts once for all of it.
"""

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import kube_api
import pytest
import yaml
from click.testing import CliRunner
from fake_openai import FakeOpenAI, fake_openai
from kubernetes import client, config
from promotion.answers import answer_as_expected
from promotion.cluster import (
    Cluster,
    Line,
    kubeconfig_through,
    request,
)
from promotion.conftest import MakeCluster, MakePublished
from promotion.driver import BY_HAND, Promotion, hooked, require_restored, serves
from promotion.kserve import NEVER, Fate
from urllib3.exceptions import ProtocolError

from quantlib.cli.promote import promote
from quantlib.cli.rollback import rollback
from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.checks import Allowances
from quantlib.promotion.cluster import find_service
from quantlib.promotion.kinds import KINDS
from quantlib.promotion.record import STALE, Held, Record
from quantlib.promotion.restoring import roll_back
from quantlib.promotion.rollout import SETTLE_SECONDS

pytestmark = pytest.mark.slow


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


def test_pods_that_never_get_ready(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster()
    before = cluster.get()
    promotion = Promotion(cluster, make_published(), {"timeout": 60.0})
    cluster.fates[promotion.uri] = NEVER
    with pytest.raises(
        QuantlibError,
        match="not ready after 60 s: 2 of 2 new pods are there, 2 of before, 2 available in all",
    ) as failed:
        promotion.run()
    assert f"serves {BY_HAND} again, after " in str(failed.value)
    require_restored(cluster, before)


def test_new_pods_that_never_get_ready_while_those_before_answer(
    make_cluster: MakeCluster, make_published: MakePublished
) -> None:
    cluster = make_cluster(mode="Standard")
    before = cluster.get()
    promotion = Promotion(cluster, make_published(), {"timeout": 60.0})
    cluster.fates[promotion.uri] = NEVER
    with pytest.raises(QuantlibError, match="dark launch: not ready after 60 s: 1 of 1 new pods"):
        promotion.run()
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


@pytest.mark.parametrize("kind", ["InferenceService", "LLMInferenceService", "Deployment"])
def test_ready_but_answering_nonsense(
    make_cluster: MakeCluster, make_published: MakePublished, fake: FakeOpenAI, kind: str
) -> None:
    cluster = make_cluster(kind)
    before = cluster.get()
    fake.tokens = {}
    with pytest.raises(QuantlibError, match="0 of 20 probes"):
        Promotion(cluster, make_published()).run()
    require_restored(cluster, before)


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


MANIFESTS = Path(__file__).parents[2] / "manifests"
ACCOUNTS = (
    MANIFESTS / "base" / "accounts.yaml",
    MANIFESTS / "components" / "promote-deployment" / "role.yaml",
)


def grant(cluster: Cluster, folder: Path, verbs: list[str] | None) -> str:
    """A token with the rights of our manifests, or with fewer verbs on services."""
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
    token = grant(cluster, tmp_path, None)
    kubeconfig_through(line, cluster.server, tmp_path / "kubeconfig", token)
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
    token = grant(cluster, tmp_path, None)
    kubeconfig_through(line, cluster.server, tmp_path / "kubeconfig", token)
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
    token = grant(cluster, tmp_path, ["get", "patch"])
    kubeconfig_through(line, cluster.server, tmp_path / "kubeconfig", token)
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


def test_permissions_taken_away_in_between(
    make_cluster: MakeCluster, make_published: MakePublished, line: Line, tmp_path: Path
) -> None:
    cluster = make_cluster()
    token = grant(cluster, tmp_path, None)
    kubeconfig_through(line, cluster.server, tmp_path / "kubeconfig", token)

    def ready(document: dict[str, Any]) -> bool:
        if cluster.kind.state(document).uri != BY_HAND:
            cluster.server.kubectl("delete", "rolebindings", "--all", "-n", cluster.namespace)
        return False

    cluster.ready = ready
    with pytest.raises(QuantlibError, match=r"could not be restored: .* no permission") as failed:
        Promotion(cluster, make_published()).run()
    assert f"quantlib rollback --service tiny --namespace {cluster.namespace}" in str(failed.value)
    assert failed.value.exit_code == 1


def test_a_service_without_a_uri_is_restored_to_none(
    make_cluster: MakeCluster, make_published: MakePublished, fake: FakeOpenAI
) -> None:
    cluster = make_cluster()
    cluster.merge({"spec": {"predictor": {"model": {"storageUri": None}}}})
    cluster.look()
    before = cluster.get()
    fake.tokens = {}
    with pytest.raises(QuantlibError, match="0 of 20 probes"):
        Promotion(cluster, make_published()).run()
    require_restored(cluster, before)


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


def cuts_when_it_changes(cluster: Cluster, line: Line) -> Callable[[dict[str, Any]], bool]:
    """A controller's view that cuts the line as soon as the service changes."""

    def ready(document: dict[str, Any]) -> bool:
        unchanged = cluster.kind.state(document).uri == BY_HAND
        if not unchanged:
            line.cut()
        return unchanged

    return ready


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
    cluster.ready = cuts_when_it_changes(cluster, line)
    with pytest.raises(QuantlibError, match="could not be restored") as failed:
        promotion.run()
    assert f"quantlib rollback --service tiny --namespace {cluster.namespace}" in str(failed.value)
    cluster.ready = lambda _: True
    line.mend()
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


@pytest.fixture
def canary(fake: FakeOpenAI) -> Iterator[Callable[[Cluster], str]]:
    """Lets a service answer as its ``canaryTrafficPercent`` says; gives where the new one does."""
    with fake_openai() as new, fake_openai() as gateway:
        answer_as_expected(new)
        new.completions = {key: f"{text} anew" for key, text in fake.completions.items()}
        turns = itertools.count()

        def split(cluster: Cluster) -> str:
            def backend() -> FakeOpenAI:
                predictor = cluster.get()["spec"]["predictor"]
                is_new = predictor["model"].get("storageUri") != BY_HAND
                share = predictor.get("canaryTrafficPercent", 100) if is_new else 0
                return new if next(turns) % 100 < share else fake

            gateway.backend = backend
            cluster.url = gateway.url
            cluster.look()
            return new.url

        yield split


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
    cluster.ready = cuts_when_it_changes(cluster, line)
    with pytest.raises(QuantlibError, match="could not be restored"):
        promotion.run()
    cluster.ready = lambda _: True
    line.mend()
    cluster.clock.sleep(STALE.total_seconds() + 1)
    with pytest.raises(InvalidInputError, match="was abandoned"):
        Promotion(cluster, make_published("two")).run()
    promotion.run()
    assert serves(cluster) == promotion.uri
    assert cluster.annotations()["quantlib.io/previous-uri"] == BY_HAND


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


def test_rolling_back_an_abandoned_canary_keeps_the_traffic_off(
    make_cluster: MakeCluster, make_published: MakePublished, fake: FakeOpenAI, line: Line
) -> None:
    cluster = make_cluster(mode="Knative")
    before = cluster.get()["spec"]
    changes = {"percents": (10,), "canary_url": fake.url, "timeout": 60.0}
    promotion = Promotion(cluster, make_published(), changes)
    cluster.ready = cuts_when_it_changes(cluster, line)
    with pytest.raises(QuantlibError, match="could not be restored"):
        promotion.run()
    cluster.ready = lambda _: True
    line.mend()
    cluster.clock.sleep(STALE.total_seconds() + 1)
    roll_back(find_service(cluster.namespace, "tiny"), cluster.rollout(), promotion.say)
    percents = [spec["predictor"].get("canaryTrafficPercent") for spec in cluster.specs]
    assert percents[:3] == [None, 10, 0]
    assert cluster.get()["spec"] == before


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
    with pytest.raises(InvalidInputError) as refused:
        Promotion(cluster, make_published(), {"percents": (10,)}).run()
    assert said in str(refused.value)
    assert serves(cluster) == BY_HAND
