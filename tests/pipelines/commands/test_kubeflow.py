"""The commands that talk to Kubeflow, against recorded answers of its server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kubeflow_api import Recorded, recorded_server
from shallow import shallowly

from quantlib.cli import cli
from quantlib.errors import InvalidInputError

STORE = ["--store", "s3://bucket/store", "--model", "hf://org/name@main"]
NAMESPACE = ["--namespace", "quantlib"]
RUN = ["run", *STORE, "--runner", "kubeflow", *NAMESPACE]


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    with recorded_server(multi_user=True) as answers:
        yield answers


@pytest.fixture(autouse=True)
def nobodys_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def call(recorded: Recorded, *arguments: str) -> Result:
    return shallowly(CliRunner().invoke, cli, [*arguments, "--host", recorded.host])


def sent(recorded: Recorded, path: str) -> Any:
    (body,) = recorded.sent(path)
    return body


def test_an_upload_says_what_is_there(recorded: Recorded) -> None:
    first = call(recorded, "upload", *NAMESPACE)
    assert first.exit_code == 0, first.output
    (version,) = recorded.versions
    assert first.stdout == f"pipeline: p1\nversion:  {version['name']} (v1)\n"
    assert "note: Kubeflow 2.17.0 starts no step again that fails" in first.stderr
    again = call(recorded, "upload", *NAMESPACE)
    assert again.stdout == f"pipeline: p1\nversion:  {version['name']} (v1), already there\n"
    assert len(recorded.versions) == 1


def test_each_workflow_is_uploaded_by_its_own_name(recorded: Recorded) -> None:
    assert call(recorded, "upload", "--pipeline", "watch", *NAMESPACE).exit_code == 0
    assert call(recorded, "upload", "--name", "mine", *NAMESPACE).exit_code == 0
    assert [each["name"] for each in recorded.pipelines] == ["watch", "mine"]


def test_a_run_is_started_with_what_was_asked_for(recorded: Recorded) -> None:
    links = ["--ui-host", "https://kubeflow.example/pipeline"]
    result = call(recorded, *RUN, "--num-ranges", "auto", *links)
    assert result.exit_code == 0, result.output
    assert result.stdout == "https://kubeflow.example/pipeline/#/runs/details/r1\n"
    assert result.stderr.startswith("note: Kubeflow 2.17.0 starts no step again that fails")
    run = sent(recorded, "/runs")
    assert run["service_account"] == "quantlib-runner"
    parameters = run["runtime_config"]["parameters"]
    expected = {
        "model": "hf://org/name@main",
        "recipe": "gptq",
        "store": "s3://bucket/store",
        "num_ranges": -1,
    }
    assert parameters.items() >= expected.items()
    assert sent(recorded, "/experiments")["namespace"] == "quantlib"


def test_a_job_that_is_running_is_not_started_again(recorded: Recorded) -> None:
    watched = [*RUN, "--job", "sha256:0123456789abcdef"]
    recorded.runs = [{"run_id": "r0", "state": "FAILED", "namespace": "quantlib"}]
    assert call(recorded, *watched).stdout == f"{recorded.host}/#/runs/details/r1\n"
    assert sent(recorded, "/runs")["display_name"] == "quantize-gptq-0123456789ab"
    recorded.requests.clear()
    recorded.runs += [{"run_id": "r2", "state": "RUNNING", "namespace": "quantlib"}]
    again = call(recorded, *watched)
    assert again.stdout == f"running already: {recorded.host}/#/runs/details/r2\n"
    assert {method for method, _, _ in recorded.requests} == {"GET"}


def test_folders_of_this_machine_are_no_use_there(recorded: Recorded) -> None:
    arguments = ["--model", "./model", "--store", "./store", "--runner", "kubeflow"]
    result = call(recorded, "run", *arguments)
    assert isinstance(result.exception, InvalidInputError)
    where = [problem.where.partition(" ")[0] for problem in result.exception.problems]
    assert where == ["--model", "--store"]
    assert recorded.requests == []


def test_a_schedule_is_of_the_workflow_that_watches(recorded: Recorded) -> None:
    publish = ["--publish-to", "s3://bucket/models", *NAMESPACE]
    result = call(recorded, "schedule", *STORE, *publish, "--cron", "0 0 3 * * *")
    assert result.exit_code == 0, result.output
    assert result.stdout == "s1\n"
    job = sent(recorded, "/recurringruns")
    assert job["display_name"] == "watch-gptq"
    assert job["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "watch"


def test_a_schedule_needs_to_know_what_is_published(recorded: Recorded) -> None:
    result = call(recorded, "schedule", *STORE, *NAMESPACE, "--cron", "0 0 3 * * *")
    assert isinstance(result.exception, InvalidInputError)
    assert "publish.destination: is missing" in str(result.exception)
    assert recorded.requests == []
