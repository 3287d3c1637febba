"""What a container of a step is created with; no engine is needed."""

from __future__ import annotations

import asyncio
import csv
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.interface import interface_of
from pipelines.local.access import Access, access_of
from pipelines.local.calls import Artifact, Call, Values
from pipelines.local.containers import RUN_LABEL, DockerRunner, docker_arguments
from quantlib.errors import InvalidInputError, QuantlibError, StepError

NOTHING = Access(read=(), store=None, destination=None, network=False)


@pytest.fixture
def call(tmp_path: Path) -> Call:
    image, folder = "registry/quantlib@sha256:1", tmp_path / "run" / "quantize[0:8]"
    outputs = interface_of("plan")
    return Call("plan", "plan", image, {"SET": "1"}, 2, folder, Values(), outputs)


def arguments_of(call: Call, access: Access = NOTHING, **changes: Any) -> list[str]:
    given: dict[str, Any] = {
        "user": (1000, 100),
        "scratch": call.folder / "scratch",
        "network": "bridge",
        "grace": 10.0,
        "environment": {},
    }
    return docker_arguments(call, access, "name", **given | changes)


def values_of(arguments: list[str], option: str) -> list[str]:
    options = arguments[: arguments.index("--entrypoint")]
    return [value for name, value in itertools.pairwise(options) if name == option]


def mounts_of(arguments: list[str]) -> dict[str, tuple[str, bool]]:
    """Source and read-only, by target."""
    found = {}
    for kind, source, target, *rest in csv.reader(values_of(arguments, "--mount")):
        assert kind == "type=bind"
        found[target.removeprefix("target=")] = (source.removeprefix("source="), bool(rest))
    return found


def test_the_container_is_locked_down_and_found_again(call: Call) -> None:
    arguments = arguments_of(call)
    assert arguments[0] == "create"
    assert {"--read-only", "--init"} <= set(arguments)
    assert "--rm" not in arguments  # its exit code could be lost
    for option, value in {
        "--cap-drop": "ALL",
        "--security-opt": "no-new-privileges",
        "--network": "none",
        "--user": "1000:100",
        "--tmpfs": "/tmp",
        "--cpus": "2",
        "--pull": "never",
        "--label": f"{RUN_LABEL}={call.folder.parent}",
        "--name": "name",
    }.items():
        assert values_of(arguments, option) == [value]
    assert values_of(arguments, "--env") == [
        "OMP_NUM_THREADS=2",
        "QUANTLIB_IMAGE=registry/quantlib@sha256:1",
        "SET=1",
    ]
    command = arguments[arguments.index("--entrypoint") :]
    assert command == ["--entrypoint", "python", call.image, *call.argv[1:]]


def test_credentials_pass_by_name_and_only_to_steps_with_a_network(call: Call) -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:8333",
        "AWS_CA_BUNDLE": "/etc/ca.crt",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/token",
        "HF_TOKEN": "secret",
        "HF_HOME": "/root/hub",
        "QUANTLIB_DRY_LOAD": "never",
        "QUANTLIB_IMAGE": "another",
        "HOME": "/root",
        "OMP_NUM_THREADS": "7",
    }
    alone = arguments_of(call, environment=environment)
    assert values_of(alone, "--env") == [
        "QUANTLIB_DRY_LOAD",
        "OMP_NUM_THREADS=7",
        "QUANTLIB_IMAGE=registry/quantlib@sha256:1",
        "SET=1",
    ]
    connected = arguments_of(
        call, replace(NOTHING, network=True), environment=environment, network="host"
    )
    assert values_of(connected, "--network") == ["host"]
    assert set(values_of(connected, "--env")) - set(values_of(alone, "--env")) == {
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ENDPOINT_URL",
        "HF_TOKEN",
    }
    assert not any("secret" in argument for argument in connected)


def test_folders_are_mounted_where_they_are(call: Call, tmp_path: Path) -> None:
    access = Access(
        read=(tmp_path / "a,b", tmp_path / "store"),
        store=tmp_path / "store",
        destination=tmp_path / "out",
        network=False,
    )
    assert mounts_of(arguments_of(call, access)) == {
        "/scratch": (str(call.folder / "scratch"), False),
        str(call.folder): (str(call.folder), False),
        str(tmp_path / "a,b"): (str(tmp_path / "a,b"), True),
        str(tmp_path / "store"): (str(tmp_path / "store"), False),
        str(tmp_path / "out"): (str(tmp_path / "out"), False),
    }


def test_gpus_when_there_are_some(call: Call) -> None:
    with_two = replace(call, gpus=("0", "3"))
    assert values_of(arguments_of(with_two), "--gpus") == ['"device=0,3"']
    assert "--gpus" not in arguments_of(call)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, texts and a receipt, which is the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("model.gguf", "texts.jsonl", "held-out.jsonl", "receipt"):
        (tmp_path / name).touch()
    return tmp_path


RECIPE = """
model: ./model.gguf
calibration: {dataset: ./texts.jsonl}
validation: {dataset: ./held-out.jsonl}
"""


def access(call: Call, step: str, files: Path, recipe: str = RECIPE, **given: str) -> Access:
    parameters = {"recipe": recipe, "store": str(files / "store"), **given}
    receipt = Artifact(files / "receipt", "system.Artifact")
    return access_of(replace(call, step=step, inputs=Values(parameters, {"model": (receipt,)})))


def test_every_step_reaches_what_it_needs_and_no_more(call: Call, files: Path) -> None:
    receipt, store = files / "receipt", files / "store"
    texts = (files / "texts.jsonl", files / "held-out.jsonl")
    assert access(call, "fetch", files, source="") == Access(
        (files / "model.gguf", *texts, receipt), store, None, network=False
    )
    pinned = f"{files / 'model.gguf'}#sha256:{'0' * 64}"
    found = access(call, "fetch", files, source=pinned).read
    assert found == (files / "model.gguf", *texts, receipt)
    (files / "out").mkdir()
    assert access(call, "resolve", files, source="", destination=str(files / "out")) == Access(
        (files / "model.gguf", files / "out", *texts, receipt), store, None, network=False
    )
    for step in ("plan", "calibrate", "validate", "smooth", "quantize", "merge"):
        assert access(call, step, files) == Access((receipt,), store, None, network=False)
    assert access(call, "publish", files, destination="") == Access(
        (receipt,), store, files / "published", network=False
    )
    assert access(call, "publish", files, destination="out").destination == files / "out"
    gate = replace(call, step="gate", inputs=Values({"reason": "worse"}))
    assert access_of(gate) == NOTHING


def test_the_network_is_for_what_is_elsewhere(call: Call, files: Path) -> None:
    assert access(call, "fetch", files, source="hf://org/name@main").network
    assert not access(call, "fetch", files, source=str(files / "missing")).network
    assert not access(call, "plan", files, source="hf://org/name@main").network
    on_hub = "calibration: {dataset: 'org/texts'}"
    assert access(call, "fetch", files, recipe=on_hub, source="").network
    in_storage = "validation: {dataset: 's3://bucket/held-out.jsonl'}"
    assert access(call, "fetch", files, recipe=in_storage, source="").network
    assert not access(call, "calibrate", files, recipe=on_hub).network
    in_bucket = access(call, "merge", files, store="s3://bucket/prefix")
    assert in_bucket.network
    assert in_bucket.store is None
    assert access(call, "publish", files, destination="s3://bucket/out").network
    assert access(call, "resolve", files, destination="s3://bucket/out").network


@pytest.mark.parametrize(
    ("client", "error", "message"),
    [
        ("exit 1", QuantlibError, "no engine answers"),
        ('[ "$1" = version ]', InvalidInputError, "image a: is not on this machine; build it"),
        (None, QuantlibError, "docker cannot be started: No such file"),
    ],
)
def test_what_is_missing_is_said_before_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    client: str | None,
    error: type[QuantlibError],
    message: str,
) -> None:
    if client:
        (tmp_path / "docker").write_text(f"#!/bin/sh\n{client}\n")
        (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(error, match=message):
        asyncio.run(DockerRunner().require(["b", "a"]))


DOCKER = """#!/bin/sh
echo "$@" >> "$0.log"
case "$1" in
  inspect) echo '{"Status": "exited", "ExitCode": 0}' ;;
esac
"""


@pytest.fixture
def fake_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker that does nothing; the fixture is what it was asked for."""
    (tmp_path / "bin").mkdir()
    client = tmp_path / "bin" / "docker"
    client.write_text(DOCKER)
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:{os.environ['PATH']}")
    return client.with_name("docker.log")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_files_of_the_user_keep_their_owner(call: Call, tmp_path: Path, fake_docker: Path) -> None:
    mine = tmp_path / "model.safetensors"
    mine.write_text("weights")
    os.chown(mine, 1234, 1234)
    store, others = tmp_path / "store" / "steps", tmp_path / "published" / "another"
    store.mkdir(parents=True)
    others.mkdir(parents=True)
    os.chown(others, 1234, 1234)
    os.link(mine, store / "model.safetensors")
    call.folder.mkdir(parents=True)
    parameters = {"store": str(store.parent), "destination": str(others.parent)}
    step = replace(call, step="publish", inputs=Values(parameters))
    assert asyncio.run(DockerRunner().run(step)) == 0
    assert (mine.stat().st_uid, others.stat().st_uid, store.stat().st_uid) == (1234, 1234, 0)
    assert "--user 0:0 " in fake_docker.read_text()
    os.chown(store.parent, 1234, 1234)
    with pytest.raises(StepError, match="belongs to user 1234, and the containers run as user 0"):
        asyncio.run(DockerRunner().run(step))


def test_who_publishes_an_image_gets_the_credentials_of_docker(
    call: Call, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(files))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    image = "oci://registry.example.org/model"
    assert access(call, "publish", files, destination=image).credentials is None
    (files / "config.json").write_text("{}")
    found = access(call, "publish", files, destination=image)
    assert (found.credentials, found.network) == (files / "config.json", True)
    assert access(call, "publish", files, destination="s3://bucket").credentials is None
    assert access(call, "merge", files, destination=image).credentials is None
    arguments = arguments_of(call, found)
    assert mounts_of(arguments)[str(files / "config.json")] == (str(files / "config.json"), True)
    assert f"DOCKER_CONFIG={files}" in values_of(arguments, "--env")
