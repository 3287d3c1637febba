"""Checkpoints as images of a real registry, read back by crane."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import urllib.request
from typing import Any

import pytest
from oci_registry import crane, find_tool
from publishing.oci.conftest import BIG, OTHER, WEIGHTS
from s3 import drop, proxy_before

from quantlib.errors import InvalidInputError, StoreError
from quantlib.publishing import folder as publishing_folder
from quantlib.publishing.oci import client
from quantlib.publishing.oci.destination import ImageDestination
from quantlib.publishing.opening import open_destination, publishing_problems
from quantlib.publishing.published import PublishedFolder
from quantlib.publishing.signing import KeySigner, PublicKey
from quantlib.publishing.verification import Policy, verify_for_promotion
from quantlib.steps.publish import publish
from quantlib.store import LocalStore


def publish_run(run: Any, destination: str, **arguments: Any) -> tuple[Any, str]:
    return publish(run.store, run.recipe, destination, run.checkpoint, run.validation, **arguments)


def contents(image: str) -> dict[str, bytes]:
    """The files of an image as a container sees them, by crane."""
    done = subprocess.run([find_tool("crane"), "export", image, "-"], capture_output=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar if each.isfile()}


def layers_of(image: str) -> list[dict[str, Any]]:
    return json.loads(crane("manifest", "--platform", "linux/amd64", image))["layers"]


def test_an_image_holds_the_published_folder_below_models(run, repository, keys, tmp_path) -> None:
    receipt, address = publish_run(
        run, f"oci://{repository}:stable", signer=KeySigner(keys.private)
    )
    image = address.removeprefix("oci://")
    assert crane("digest", f"{repository}:stable").strip() == image.rpartition("@")[2]
    assert receipt.facts["address"] == receipt.facts["storage_uri"] == address

    folder = tmp_path / "pulled"
    for name, data in contents(image).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    digest = run.checkpoint.facts["checkpoint_digest"]
    policy = Policy(PublicKey(keys.public), digest=digest)
    verified = verify_for_promotion(PublishedFolder(LocalStore(folder / "models")), policy)
    assert (verified.manifest.release, verified.manifest.by_reference) == (1, False)
    assert (folder / "models" / BIG).read_bytes() == WEIGHTS[BIG]


def test_an_image_says_what_it_is_and_is_one_for_each_platform(run, repository) -> None:
    _, address = publish_run(run, f"oci://{repository}")
    image = address.removeprefix("oci://")
    index = json.loads(crane("manifest", image))
    platforms = [entry["platform"] for entry in index["manifests"]]
    assert platforms == [{"architecture": one, "os": "linux"} for one in ("amd64", "arm64")]
    manifest = contents(image)["models/manifest.json"]
    published = json.loads(manifest)
    said = index["annotations"]
    assert said["quantlib.io/manifest"] == f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    assert said["quantlib.io/digest"] == published["checkpoint"]
    assert said["quantlib.io/recipe"] == run.recipe.digest()
    assert said["quantlib.io/release"] == said["org.opencontainers.image.version"] == "1"
    for platform in ("linux/amd64", "linux/arm64"):
        config = json.loads(crane("config", "--platform", platform, image))
        layers = layers_of(image)
        assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in layers]
        assert f"{config['os']}/{config['architecture']}" == platform


def test_the_same_bytes_are_the_same_image(run, repository, registry, monkeypatch) -> None:
    moment = publishing_folder.now()
    monkeypatch.setattr(publishing_folder, "now", lambda: moment)
    first, address = publish_run(run, f"oci://{repository}")
    _, elsewhere = publish_run(run, f"oci://{repository}-copy")
    assert elsewhere.rpartition("@")[2] == address.rpartition("@")[2]
    assert publish_run(run, f"oci://{repository}") == (first, address)


def test_publishing_again_reads_and_sends_nothing(run, repository, monkeypatch, registry) -> None:
    with proxy_before(int(registry.rpartition(":")[2])) as proxy:
        there = repository.replace(registry, f"127.0.0.1:{proxy.port}")
        first, address = publish_run(run, f"oci://{there}")
        proxy.requests.clear()
        monkeypatch.setattr(run.store, "stream", None)
        assert publish_run(run, f"oci://{there}:newest") == (first, address)
        sent = [request.path for request in proxy.requests if request.method in ("PUT", "POST")]
        assert [path.rpartition("/")[2] for path in sent] == ["newest"]


def test_what_did_not_change_is_no_new_layer(run, repository, make_run) -> None:
    _, before = publish_run(run, f"oci://{repository}")
    changed = make_run("changed", weights=WEIGHTS | {OTHER: b"changed" * 1000})
    _, after = publish_run(changed, f"oci://{repository}")
    layers = [
        [layer["digest"] for layer in layers_of(address.removeprefix("oci://"))]
        for address in (before, after)
    ]
    kept = [one == other for one, other in zip(*layers, strict=True)]
    assert kept[:2] == [True, False]  # the weights, one layer each
    manifest = json.loads(contents(after.removeprefix("oci://"))["models/manifest.json"])
    assert manifest["release"] == 2


def test_a_push_that_is_cut_goes_on_with_what_is_missing(
    run, repository, registry, monkeypatch
) -> None:
    monkeypatch.setattr(client, "_TRIES", 1)
    monkeypatch.setattr("quantlib.publishing.oci.destination._PARALLEL_LAYERS", 1)
    with proxy_before(int(registry.rpartition(":")[2])) as proxy:
        there = f"oci://{repository.replace(registry, f'127.0.0.1:{proxy.port}')}"
        started = []

        def second_upload(request: Any) -> bool:
            started.append(request.path) if request.method == "PUT" else None
            return request.method == "PUT" and len(started) == 2

        proxy.faults.append((second_upload, drop))
        with pytest.raises(StoreError, match=r"blob sha256:.* was not taken"):
            publish_run(run, there)
        assert open_destination(there).published_of("sha256:1") is None
        proxy.requests.clear()
        _, address = publish_run(run, there)
        sent = [request.sent for request in proxy.requests if request.method == "PUT"]
        assert max(sent) < len(WEIGHTS[BIG])  # which arrived the first time
        assert layers_of(address.removeprefix("oci://").replace(str(proxy.port), registry[10:]))


def test_a_request_that_fails_for_a_moment_is_sent_again(run, repository, registry) -> None:
    with proxy_before(int(registry.rpartition(":")[2])) as proxy:
        there = f"oci://{repository.replace(registry, f'127.0.0.1:{proxy.port}')}"
        for method in ("HEAD", "POST", "PUT", "GET"):
            proxy.break_next(drop, method=method, times=2)
        _, address = publish_run(run, there)
    assert address.rpartition("@")[2] == crane("digest", f"{repository}:{digits(run)}").strip()


def digits(run: Any) -> str:
    return run.checkpoint.facts["checkpoint_digest"].removeprefix("sha256:")


def test_a_layer_that_the_registry_lost_is_pushed_again(run, repository) -> None:
    _, address = publish_run(run, f"oci://{repository}")
    layer = layers_of(address.removeprefix("oci://"))[0]["digest"]
    delete_blob(repository, layer)
    assert publish_run(run, f"oci://{repository}")[1] == address
    assert contents(address.removeprefix("oci://"))[f"models/{BIG}"] == WEIGHTS[BIG]


def delete_blob(repository: str, digest: str) -> None:
    """What garbage collection does."""
    host, _, name = repository.partition("/")
    request = urllib.request.Request(f"http://{host}/v2/{name}/blobs/{digest}", method="DELETE")
    with urllib.request.urlopen(request):
        pass


def test_what_somebody_else_signed_stays(run, repository, make_keys) -> None:
    _, address = publish_run(run, f"oci://{repository}", signer=KeySigner(make_keys("a").private))
    theirs = KeySigner(make_keys("b").private)
    with pytest.raises(InvalidInputError, match="is somebody else's signature"):
        publish_run(run, f"oci://{repository}", signer=theirs)
    _, replaced = publish_run(run, f"oci://{repository}", signer=theirs, replace_signature=True)
    assert replaced != address


def test_a_job_leads_to_its_image(run, repository) -> None:
    place = open_destination(f"oci://{repository}")
    assert place.published_of("sha256:" + "4" * 64) is None
    _, address = publish_run(run, f"oci://{repository}", job="sha256:" + "4" * 64)
    assert place.published_of("sha256:" + "4" * 64) == address


def test_a_damaged_store_is_not_published(run, repository) -> None:
    path = run.store.local_path(run.checkpoint.path(BIG))
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"?")
    with pytest.raises(StoreError, match="what the store gave is not what its receipt says"):
        publish_run(run, f"oci://{repository}")
    assert open_destination(f"oci://{repository}").problems() == []


def test_an_image_lies_on_a_base(run, repository, tmp_path) -> None:
    base = tmp_path / "base.tar"
    with tarfile.open(base, "w") as tar:
        shell = tarfile.TarInfo("bin/sh")
        shell.size = 2
        tar.addfile(shell, io.BytesIO(b"#!"))
    crane("append", "--new_layer", str(base), "--new_tag", f"{repository}-base:1")
    [problem] = publishing_problems(f"oci://{repository}", f"oci://{repository}-base:1")
    assert "has no image for linux on amd64 or arm64" in str(problem)
    name = f"{repository}-base:1"
    crane("mutate", "--set-platform", "linux/amd64", "--tag", name, name)
    recipe = run.recipe.model_copy(
        update={
            "publish": run.recipe.publish.model_copy(
                update={"base_image": f"oci://{repository}-base:1"}
            )
        }
    )
    run = type(run)(run.store, recipe, run.checkpoint, run.validation, run.evaluation)
    _, address = publish_run(run, f"oci://{repository}")
    image = address.removeprefix("oci://")
    files = contents(image)
    assert files["bin/sh"] == b"#!"
    assert files[f"models/{BIG}"] == WEIGHTS[BIG]


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("oci://team/model", "names no registry"),
        ("oci://registry.example.org/Team/model", "is no name of a repository"),
        ("oci://registry.example.org/", "is no name of a repository"),
        ("oci://registry.example.org/model:a b", "is no tag"),
        ("oci://registry.example.org/model@sha256:" + "4" * 64, "which is known when it is there"),
        ("docker://registry.example.org/model", "unsupported kind of destination"),
    ],
)
def test_addresses_that_are_none_are_refused(address: str, problem: str) -> None:
    [found] = publishing_problems(address)
    assert problem in str(found)


def test_a_base_is_for_images_only(tmp_path) -> None:
    [problem] = publishing_problems(str(tmp_path), "oci://localhost:5000/base")
    assert "is for images" in str(problem)


def test_a_registry_that_does_not_answer_and_a_base_that_is_missing_are_told_at_once(
    repository, monkeypatch
) -> None:
    monkeypatch.setattr(client, "_TRIES", 1)
    problems = publishing_problems("oci://localhost:9/model", f"oci://{repository}-none:1")
    assert "no answer from http://localhost:9" in str(problems[0])
    assert "there is no such image" in str(problems[1])


def test_an_open_registry_has_no_problems_and_keeps_nothing(repository) -> None:
    assert ImageDestination(f"oci://{repository}").problems() == []
    with pytest.raises(AssertionError, match="NAME_UNKNOWN"):
        crane("ls", repository)
