"""Uploading, starting and scheduling, against recorded answers of a Kubeflow Pipelines server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result
from kubeflow_api import Recorded, recorded_server

import pipelines.__main__ as command
from pipelines.kubeflow import check_cron
from quantlib.errors import InvalidInputError, StepError

STORE = ["--store", "s3://bucket/store", "--model", "hf://org/name@main"]


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    with recorded_server() as answers:
        yield answers


@pytest.fixture(autouse=True)
def nobodys_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)


def call(recorded: Recorded, *arguments: str) -> Result:
    return CliRunner().invoke(command.main, [*arguments, "--host", recorded.host])


def sent(recorded: Recorded, path: str) -> Any:
    (body,) = recorded.sent(path)
    return body


def test_a_pipeline_is_uploaded_once_and_then_in_versions(recorded: Recorded) -> None:
    first = call(recorded, "upload")
    assert first.exit_code == 0, first.output
    assert first.output == "pipeline: p1\nversion:  v1\n"
    recorded.pipelines = [{"pipeline_id": "p1", "display_name": "quantize"}]
    second = call(recorded, "upload", "--version", "two")
    assert second.output == "pipeline: p1\nversion:  v2\n"
    uploads = [path for method, path, _ in recorded.requests if "upload" in path]
    assert "upload?name=quantize" in uploads[0]
    assert "upload_version" in uploads[1] and "name=two" in uploads[1]


def test_a_run_is_started_with_what_the_recipe_says(recorded: Recorded) -> None:
    result = call(
        recorded, "run", "gptq", *STORE, "--runner", "kubeflow", "--num-ranges", "auto",
        "--namespace", "quantlib",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.output == f"{recorded.host}/#/runs/details/r1\n"
    run = sent(recorded, "/runs")
    assert run["service_account"] == "quantlib-runner"
    parameters = run["runtime_config"]["parameters"]
    assert json.loads(parameters.pop("recipe"))["quantization"]["method"] == "gptq"
    assert parameters == {
        "source": "hf://org/name@main",
        "store": "s3://bucket/store",
        "num_ranges": -1,
        "destination": "",
        "device": "auto",
    }
    specification = run["pipeline_spec"]
    assert set(specification) == {"pipeline_spec", "platform_spec"}
    assert sent(recorded, "/experiments")["namespace"] == "quantlib"


def test_a_job_that_is_running_is_not_started_again(recorded: Recorded) -> None:
    watched = ["run", "gptq", *STORE, "--runner", "kubeflow", "--job", "sha256:0123456789abcdef"]
    recorded.runs = [{"run_id": "r0", "state": "FAILED"}]
    assert call(recorded, *watched).output == f"{recorded.host}/#/runs/details/r1\n"
    assert sent(recorded, "/runs")["display_name"] == "quantize-gptq-0123456789ab"
    (asked,) = [path for method, path, _ in recorded.requests if "/runs?" in path]
    (predicate,) = json.loads(parse_qs(urlsplit(asked).query)["filter"][0])["predicates"]
    assert predicate["stringValue"] == "0123456789ab"

    recorded.requests.clear()
    recorded.runs = [*recorded.runs, {"run_id": "r2", "state": "RUNNING"}]
    again = call(recorded, *watched)
    assert again.output == f"running already: {recorded.host}/#/runs/details/r2\n"
    assert {method for method, _, _ in recorded.requests} == {"GET"}


def test_a_pod_says_who_it_is_by_its_own_token(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("of-the-pod\n")
    monkeypatch.setattr("pipelines.kubeflow.TOKEN_FILE", token)
    assert call(recorded, "upload").exit_code == 0
    assert recorded.tokens == {"Bearer of-the-pod"}
    recorded.tokens.clear()
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "given")
    assert call(recorded, "upload").exit_code == 0
    assert recorded.tokens == {"Bearer given"}


def test_a_schedule_makes_up_for_nothing_and_runs_one_at_a_time(recorded: Recorded) -> None:
    publish = ["--publish-to", "s3://bucket/models"]
    result = call(recorded, "schedule", "gptq", *STORE, *publish, "--cron", "0 0 3 * * *")
    assert result.exit_code == 0, result.output
    assert result.output == "s1\n"
    job = sent(recorded, "/recurringruns")
    assert job["display_name"] == "watch-gptq"
    assert job["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "watch"
    assert "job" not in job["runtime_config"]["parameters"]
    assert job["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert job["no_catchup"] is True
    assert int(job["max_concurrency"]) == 1


def test_a_schedule_needs_to_know_what_is_published(recorded: Recorded) -> None:
    result = call(recorded, "schedule", "gptq", *STORE, "--cron", "0 0 3 * * *")
    assert isinstance(result.exception, InvalidInputError)
    assert "publish.destination: is missing" in str(result.exception)
    assert recorded.requests == []


def test_the_watch_pipeline_is_uploaded_by_its_own_name(recorded: Recorded) -> None:
    assert call(recorded, "upload", "--pipeline", "watch").exit_code == 0
    (upload,) = [path for method, path, _ in recorded.requests if "upload" in path]
    assert "upload?name=watch" in upload


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
def test_refusals_are_explained(recorded: Recorded, status: int, meaning: str) -> None:
    recorded.refusal = (status, "no such thing")
    result = call(recorded, "upload")
    assert isinstance(result.exception, StepError)
    assert meaning in str(result.exception)
    assert recorded.host in str(result.exception)
    assert "\n" not in str(result.exception)


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
    result = call(recorded, "upload")
    assert isinstance(result.exception, StepError)
    assert said in str(result.exception)
    assert "set KF_PIPELINES_TOKEN" in str(result.exception)
    assert [path for _, path, _ in recorded.requests] == ["/apis/v2beta1/healthz"]


def test_a_server_that_is_not_there(recorded: Recorded) -> None:
    recorded.host = "http://127.0.0.1:9"
    result = call(recorded, "upload")
    assert isinstance(result.exception, StepError)
    assert "Kubeflow at http://127.0.0.1:9 cannot be reached" in str(result.exception)


def test_a_host_is_needed() -> None:
    result = CliRunner().invoke(command.main, ["upload"])
    assert isinstance(result.exception, InvalidInputError)
    assert "set KF_PIPELINES_ENDPOINT" in str(result.exception)


def test_folders_of_this_machine_are_no_use_there(recorded: Recorded) -> None:
    result = call(recorded, "run", "gptq", "--model", "./model", "--runner", "kubeflow")
    assert isinstance(result.exception, InvalidInputError)
    where = [problem.where.partition(" ")[0] for problem in result.exception.problems]
    assert where == ["--model", "--store"]
    assert recorded.requests == []


@pytest.mark.parametrize("text", ["0 3 * * *", "", "0 0 3 * * * *", "0 0 3 * * $"])
def test_schedules_have_six_fields(text: str) -> None:
    with pytest.raises(InvalidInputError, match="--cron"):
        check_cron(text)
    check_cron("0 */5 3 1-7 * MON")
