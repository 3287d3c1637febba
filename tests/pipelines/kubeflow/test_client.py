"""Uploading, starting and scheduling, against recorded answers of a Kubeflow Pipelines server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from kubeflow_api import Recorded, recorded_server
from shallow import shallowly

from pipelines.compiling import CompileOptions, prepare
from pipelines.graph import QUANTIZE
from pipelines.kubeflow.client import Kubeflow, Server, check_cron
from pipelines.kubeflow.compiling import compile_pipeline
from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.runtime.code_version import code_version

SHARED = {"pipeline_id": "shared", "name": "quantize", "namespace": ""}
OURS = {"pipeline_id": "ours", "name": "quantize", "namespace": "quantlib"}


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    with recorded_server() as answers:
        yield answers


@pytest.fixture
def profiles() -> Iterator[Recorded]:
    """A server with profiles."""
    with recorded_server(multi_user=True) as answers:
        yield answers


@pytest.fixture(autouse=True)
def nobodys_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    monkeypatch.delenv("KF_PIPELINES_UI_ENDPOINT", raising=False)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    shallowly(compile_pipeline, prepare(QUANTIZE, CompileOptions(allow_floating=True)), file)
    return file


@pytest.fixture
def other(compiled: Path, tmp_path: Path) -> Path:
    """What another profile or other images would make of the same code."""
    file = tmp_path / "other.yaml"
    file.write_text(compiled.read_text().replace("maxRetryCount: 3", "maxRetryCount: 2"))
    return file


def kubeflow(recorded: Recorded, namespace: str = "", **settings: str) -> Kubeflow:
    return Kubeflow(Server(recorded.host, namespace, **settings))


def sent(recorded: Recorded, path: str) -> Any:
    (body,) = recorded.sent(path)
    return body


def posted(recorded: Recorded) -> list[str]:
    return [path for method, path, _ in recorded.requests if method == "POST"]


def test_a_first_version_makes_the_pipeline(recorded: Recorded, compiled: Path) -> None:
    uploaded = kubeflow(recorded).upload(compiled, "quantize", "one")
    assert (uploaded.pipeline, uploaded.version, uploaded.is_new) == ("p1", "v1", True)
    (pipeline,), (version,) = recorded.pipelines, recorded.versions
    assert pipeline["name"] == "quantize"
    assert pipeline["description"] == QUANTIZE.description
    assert version["name"] == uploaded.name == "one"


def test_a_version_is_named_by_code_and_content(
    recorded: Recorded, compiled: Path, other: Path
) -> None:
    server = kubeflow(recorded)
    names = [server.upload(file, "quantize").name for file in (compiled, other)]
    assert names[0] != names[1]
    for name in names:
        assert name.startswith(code_version().replace("+", "-"))
        assert name.replace(".", "").replace("-", "").isalnum(), "a name of Kubernetes"
    assert len(recorded.pipelines) == 1
    assert [each["pipeline_id"] for each in recorded.versions] == ["p1", "p1"]


@pytest.mark.parametrize("version", ["", "mine"])
def test_what_is_there_is_not_uploaded_again(
    recorded: Recorded, compiled: Path, version: str
) -> None:
    first = kubeflow(recorded).upload(compiled, "quantize", version)
    recorded.requests.clear()
    again = kubeflow(recorded).upload(compiled, "quantize", version)
    assert not again.is_new
    assert (again.pipeline, again.version, again.name) == (
        first.pipeline,
        first.version,
        first.name,
    )
    assert posted(recorded) == []


def test_another_file_of_the_same_version_is_refused(
    recorded: Recorded, compiled: Path, other: Path
) -> None:
    kubeflow(recorded).upload(compiled, "quantize", "mine")
    with pytest.raises(InvalidInputError, match="with other content; name this one with --version"):
        kubeflow(recorded).upload(other, "quantize", "mine")
    assert len(recorded.versions) == 1


def test_a_shared_pipeline_is_not_ours(profiles: Recorded, compiled: Path) -> None:
    profiles.pipelines = [SHARED]
    made = kubeflow(profiles, "quantlib").upload(compiled, "quantize")
    assert made.pipeline != "shared"
    assert profiles.pipelines[1]["namespace"] == "quantlib"
    assert not kubeflow(profiles, "quantlib").upload(compiled, "quantize").is_new
    profiles.pipelines = [OURS, SHARED]
    assert kubeflow(profiles).upload(compiled, "quantize").pipeline == "shared"
    assert kubeflow(profiles, "quantlib").upload(compiled, "quantize").pipeline == "ours"


def test_a_run_is_started_with_its_parameters(profiles: Recorded, compiled: Path) -> None:
    parameters = {"model": "hf://org/name@main", "recipe": "gptq", "recipe_changes": {"seed": 1}}
    page = kubeflow(profiles, "quantlib").run(compiled, parameters, "quantize-gptq")
    assert page == f"{profiles.host}/#/runs/details/r1"
    run = sent(profiles, "/runs")
    assert run["display_name"] == "quantize-gptq"
    assert run["runtime_config"]["parameters"] == parameters
    assert set(run["pipeline_spec"]) == {"pipeline_spec", "platform_spec"}
    assert sent(profiles, "/experiments")["namespace"] == "quantlib"


def test_our_account_is_taken_where_our_manifests_make_it(
    recorded: Recorded, profiles: Recorded, compiled: Path
) -> None:
    kubeflow(recorded).run(compiled, {}, "one")
    assert "service_account" not in sent(recorded, "/runs")
    kubeflow(recorded, service_account="mine").schedule(compiled, {}, "one", "0 0 3 * * *")
    assert sent(recorded, "/recurringruns")["service_account"] == "mine"
    kubeflow(profiles, "quantlib").run(compiled, {}, "one")
    assert sent(profiles, "/runs")["service_account"] == "quantlib-runner"


def test_namespaces_fit_the_server(recorded: Recorded, profiles: Recorded, compiled: Path) -> None:
    with pytest.raises(InvalidInputError, match="has no profiles; leave it out"):
        kubeflow(recorded, "quantlib")
    for act in (
        lambda server: server.run(compiled, {}, "one"),
        lambda server: server.running("one"),
        lambda server: server.schedule(compiled, {}, "one", "0 0 3 * * *"),
    ):
        with pytest.raises(InvalidInputError, match=r"--namespace: is missing: .* has profiles"):
            act(kubeflow(profiles))
    assert posted(profiles) == []


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ("https://kubeflow.example/pipeline/", "https://kubeflow.example/pipeline"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
    ],
)
def test_links_lead_to_the_user_interface(
    recorded: Recorded, compiled: Path, given: str, prefix: str
) -> None:
    recorded.runs = [{"run_id": "r2", "state": "RUNNING", "namespace": ""}]
    server = kubeflow(recorded, ui_host=given)
    assert server.run(compiled, {}, "one") == f"{prefix}/#/runs/details/r1"
    assert server.running("one") == f"{prefix}/#/runs/details/r2"


def test_runs_that_have_not_ended_are_found(recorded: Recorded, profiles: Recorded) -> None:
    recorded.runs = [{"run_id": "r0", "state": "FAILED", "namespace": ""}]
    assert kubeflow(recorded).running("0123456789ab") == ""
    (asked,) = [path for method, path, _ in recorded.requests if "/runs?" in path]
    (predicate,) = json.loads(parse_qs(urlsplit(asked).query)["filter"][0])["predicates"]
    assert (predicate["operation"], predicate["stringValue"]) == ("IS_SUBSTRING", "0123456789ab")
    recorded.runs += [{"run_id": "r2", "state": "RUNNING", "namespace": ""}]
    assert kubeflow(recorded).running("0123456789ab") == f"{recorded.host}/#/runs/details/r2"
    profiles.runs = [{"run_id": "r3", "state": "RUNNING", "namespace": "others"}]
    assert kubeflow(profiles, "quantlib").running("0123456789ab") == ""


def test_a_pod_says_who_it_is_by_its_own_token(
    recorded: Recorded, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("of-the-pod\n")
    monkeypatch.setattr("pipelines.kubeflow.client.TOKEN_FILE", token)
    kubeflow(recorded).upload(compiled, "quantize")
    assert recorded.tokens == {"Bearer of-the-pod"}
    recorded.tokens.clear()
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "given")
    kubeflow(recorded).upload(compiled, "quantize")
    assert recorded.tokens == {"Bearer given"}


def test_a_schedule_makes_up_for_nothing_and_runs_one_at_a_time(
    recorded: Recorded, compiled: Path
) -> None:
    identity = kubeflow(recorded).schedule(compiled, {"store": "s"}, "nightly", "0 0 3 * * *")
    assert identity == "s1"
    job = sent(recorded, "/recurringruns")
    assert job["display_name"] == "nightly"
    assert job["runtime_config"]["parameters"] == {"store": "s"}
    assert job["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert job["no_catchup"] is True
    assert int(job["max_concurrency"]) == 1


def test_who_relies_on_retries_is_told(recorded: Recorded, compiled: Path, tmp_path: Path) -> None:
    server = kubeflow(recorded)
    assert "Kubeflow 2.17.0 starts no step again that fails" in server.note_on_retries(compiled)
    recorded.runs = [{"run_id": "r9", "state": "FAILED", "namespace": ""}]
    assert "unless its API server has" in server.note_on_retries(compiled), "of it nothing is kept"
    for policy, told in (("OnError", True), ("Always", False)):
        defaults = {"retryStrategy": {"limit": "2", "retryPolicy": policy}}
        recorded.workflows["r9"] = json.dumps({"spec": {"templateDefaults": defaults}})
        assert (f"retryPolicy {policy}" in server.note_on_retries(compiled)) is told
        assert bool(server.note_on_retries(compiled)) is told


def test_nothing_is_said_where_no_step_asks_for_retries(
    recorded: Recorded, compiled: Path, tmp_path: Path
) -> None:
    server = kubeflow(recorded)
    recorded.requests.clear()
    profile = tmp_path / "once.yaml"
    profile.write_text("retries: {count: 0}\n")
    once = tmp_path / "pipeline.yaml"
    options = CompileOptions(cluster=str(profile), allow_floating=True)
    shallowly(compile_pipeline, prepare(QUANTIZE, options), once)
    assert server.note_on_retries(once) == ""
    assert recorded.requests == []


def test_the_gate_and_the_plan_are_never_retried(compiled: Path) -> None:
    specification = next(yaml.safe_load_all(compiled.read_text()))
    tasks = specification["root"]["dag"]["tasks"]
    without = {name for name, task in tasks.items() if "retryPolicy" not in task}
    assert {"gate", "plan"} <= without
    assert "validate" not in without


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (401, "does not know who asks; set KF_PIPELINES_TOKEN"),
        (403, "does not allow it"),
        (400, "refuses what it was sent: no such thing"),
        (404, "check --host and --namespace"),
        (418, "answers 418"),
    ],
)
def test_refusals_are_explained(
    recorded: Recorded, compiled: Path, status: int, meaning: str
) -> None:
    server = kubeflow(recorded)
    recorded.refusal = (status, "no such thing")
    with pytest.raises(QuantlibError) as refused:
        server.upload(compiled, "quantize")
    assert meaning in str(refused.value)
    assert recorded.host in str(refused.value)
    assert str(refused.value).endswith(": no such thing")
    assert "\n" not in str(refused.value)


def test_the_reason_of_a_refused_upload_is_shown(
    recorded: Recorded, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = kubeflow(recorded)
    monkeypatch.setattr(
        recorded,
        "_create_version",
        lambda _: (400, {"error_message": "invalid pipeline", "error_details": "main.go:1"}),
    )
    with pytest.raises(QuantlibError, match=r"refuses what it was sent: invalid pipeline$"):
        server.upload(compiled, "quantize")


def test_the_cause_at_the_end_of_a_long_chain_is_shown(recorded: Recorded, compiled: Path) -> None:
    server = kubeflow(recorded)
    recorded.refusal = (400, "Failed to list: " + "Check the error stack: " * 50 + "no database")
    with pytest.raises(QuantlibError, match=r": Failed to list: .* … .*: no database$"):
        server.upload(compiled, "quantize")


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (302, {"Location": "/dex/auth?state=1"}, "sends to /dex/auth?state=1, as for a login"),
        (200, {"Content-Type": "text/html"}, "answers with a page for people, as for a login"),
    ],
)
def test_a_login_before_the_server(
    recorded: Recorded, status: int, headers: dict[str, str], said: str
) -> None:
    recorded.login = (status, headers)
    with pytest.raises(QuantlibError, match="set KF_PIPELINES_TOKEN") as refused:
        kubeflow(recorded)
    assert said in str(refused.value)
    assert [path for _, path, _ in recorded.requests] == ["/apis/v2beta1/healthz"]


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(QuantlibError, match=r"Kubeflow at http://127.0.0.1:9 cannot be reached"):
        Kubeflow(Server("http://127.0.0.1:9"))


def test_a_host_is_needed() -> None:
    with pytest.raises(InvalidInputError, match="set KF_PIPELINES_ENDPOINT"):
        Kubeflow(Server(""))


def test_the_sdk_says_nothing_of_its_own(recorded: Recorded, compiled: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from pipelines.kubeflow.client import Kubeflow, Server\n"
        "server = Kubeflow(Server(sys.argv[1]))\n"
        "server.upload(Path(sys.argv[2]), 'quantize'); server.run(Path(sys.argv[2]), {}, 'one')\n"
    )
    arguments = [sys.executable, "-c", script, recorded.host, str(compiled)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("text", ["0 3 * * *", "", "0 0 3 * * * *", "0 0 3 * * $"])
def test_schedules_have_six_fields(text: str) -> None:
    with pytest.raises(InvalidInputError, match="--cron"):
        check_cron(text)
    check_cron("0 */5 3 1-7 * MON")
