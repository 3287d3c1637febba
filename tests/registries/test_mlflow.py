"""Entries of a real MLflow server, which `make test-tools` installs beside the environment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_ports

from quantlib.registries.mlflow import register
from quantlib.registries.rest import Rest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    beside = Path(sys.executable).parents[1] / "mlflow" / "bin"
    places = [str(beside), os.environ.get("PATH", os.defpath)]
    program = shutil.which("mlflow", path=os.pathsep.join(places))
    if program is None:
        pytest.skip("mlflow is not installed: make test-tools")
    folder, [port] = tmp_path_factory.mktemp("mlflow"), free_ports(1)
    command = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'entries.sqlite'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True
        )
    try:
        _wait(f"http://127.0.0.1:{port}", process, folder / "log.txt")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.2)
    raise RuntimeError(f"the server failed: {log.read_text()[-2000:]}")


def test_a_publication_is_a_run_and_a_version_of_a_model(server, entry) -> None:
    rest = Rest(server)
    said = register(rest, entry)
    assert said.endswith("; tiny, version 1")
    run = said.split()[2].rstrip(";")
    held = rest.ask("GET", "api/2.0/mlflow/runs/get", parameters={"run_id": run})["run"]
    assert held["info"]["status"] == "FINISHED"
    data = held["data"]
    assert {each["key"]: each["value"] for each in data["metrics"]} == entry.figures
    assert {each["key"]: each["value"] for each in data["params"]} == entry.settings
    tags = {each["key"]: each["value"] for each in data["tags"]}
    assert tags["quantlib.digest"] == entry.digest
    assert tags["quantlib.release"] == "3"
    listed = rest.ask("GET", "api/2.0/mlflow/artifacts/list", parameters={"run_id": run})
    [file] = listed["files"]
    assert (file["path"], file["file_size"]) == ("quantization_report.html", len(entry.page))
    wanted = {"name": "tiny", "version": "1"}
    version = rest.ask("GET", "api/2.0/mlflow/model-versions/get", parameters=wanted)
    assert version["model_version"]["source"] == entry.uri
    assert version["model_version"]["run_id"] == run


def test_the_same_again_enters_nothing(server, make_entry) -> None:
    entry = make_entry(name="again", manifest="sha256:" + "6" * 64)
    assert register(Rest(server), entry) == register(Rest(server), entry)


def test_a_folder_of_this_machine_is_a_run_alone(server, make_entry) -> None:
    entry = make_entry(name="local", uri="/models/local", manifest="sha256:" + "7" * 64)
    said = register(Rest(server), entry)
    assert ";" not in said
    assert register(Rest(server), entry) == said
