"""Images of a real registry as published checkpoints: verified, signed, and taken back."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from oci_registry import crane
from publishing.oci.conftest import BIG, OTHER, WEIGHTS
from s3 import proxy_before

from quantlib.cli.sign import sign as sign_command
from quantlib.cli.unpublish import unpublish as unpublish_command
from quantlib.cli.verify import verify as verify_command
from quantlib.errors import InvalidInputError, StoreError, VerificationError
from quantlib.publishing.destination import Member, record_of
from quantlib.publishing.linking import brought_folder
from quantlib.publishing.oci.address import parse_image_address
from quantlib.publishing.oci.client import MANIFEST, Document, Repository, digest_of
from quantlib.publishing.oci.image import CONFIG, descriptor
from quantlib.publishing.oci.layers import MEDIA_TYPE, Layer
from quantlib.publishing.oci.published import PublishedImage
from quantlib.publishing.oci.unpacking import unpack
from quantlib.publishing.opening import open_destination
from quantlib.publishing.reading import open_published
from quantlib.publishing.signing import KeySigner, PublicKey
from quantlib.publishing.unpublish import unpublish
from quantlib.publishing.verification import Policy, verify_for_promotion
from quantlib.steps.publish import sign_published
from quantlib.store import FileRecord

PublishImage = Callable[..., str]


def problems_of(address: str, policy: Policy | None = None) -> list[str]:
    """What is wrong with an image; where in it, and what."""
    with pytest.raises(VerificationError) as refused:
        verify_for_promotion(open_published(address), policy or Policy())
    return [str(each).replace(f"{address}/", "") for each in refused.value.problems]


def with_layer(address: str, layer: bytes, media_type: str = MEDIA_TYPE) -> str:
    """The image with one more layer on top, for every platform."""
    repository = Repository(replace(parse_image_address(address), reference=""))
    index = repository.document(address.rpartition("@")[2])
    assert index is not None
    content = index.parsed(address)
    repository.push_blob(digest_of(layer), len(layer), lambda: iter((layer,)))
    for entry in content["manifests"]:
        image = repository.document(entry["digest"])
        assert image is not None
        changed = image.parsed(address)
        changed["layers"].append(descriptor(media_type, layer))
        document = Document(json.dumps(changed).encode(), image.media_type)
        repository.put_document(document.digest, document)
        entry |= descriptor(image.media_type, document.data)
    changed_index = Document(json.dumps(content).encode(), index.media_type)
    repository.put_document(changed_index.digest, changed_index)
    return repository.address.at(changed_index.digest)


def as_published(name: str, data: bytes) -> bytes:
    """A layer as publishing makes it."""
    return b"".join(Layer((Member.of(name, data),)).chunks())


def archive_of(entry: tarfile.TarInfo, data: bytes = b"") -> bytes:
    """Any other."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return written.getvalue()


def link_to(name: str, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    return entry


def test_every_byte_of_an_image_is_verified_and_read_once(
    run: Any, publish_image: PublishImage, registry: str, repository: str, keys: Any
) -> None:
    publish_image(signer=KeySigner(keys.private))
    told: list[int] = []
    with proxy_before(int(registry.rpartition(":")[2])) as proxy:
        there = repository.replace(registry, f"127.0.0.1:{proxy.port}")
        digits = run.checkpoint.facts["checkpoint_digest"].removeprefix("sha256:")
        place = open_published(f"oci://{there}:{digits}")
        policy = Policy(PublicKey(keys.public), require_signature=True)
        verified = verify_for_promotion(place, policy, told.append)
        asked = [request.path for request in proxy.requests if "/blobs/" in request.path]
    assert verified.address == place.address
    assert verified.address.startswith(f"oci://{there}@sha256:")
    assert verified.signed
    assert (verified.digest, verified.manifest.release) == (f"sha256:{digits}", 1)
    assert verified.serve["dtype"] == "bfloat16"
    assert sum(told) >= sum(map(len, WEIGHTS.values()))
    layers = json.loads(crane("manifest", "--platform", "linux/amd64", f"{repository}:{digits}"))
    big = layers["layers"][0]
    assert big["size"] > len(WEIGHTS[BIG])
    assert [path.rpartition("/")[2] for path in asked].count(big["digest"]) == 1


def test_the_command_prints_what_a_tag_means_and_checks_the_digest(
    run: Any, publish_image: PublishImage, repository: str, keys: Any
) -> None:
    address = publish_image(f"oci://{repository}:stable", signer=KeySigner(keys.private))
    options = ["--public-key", str(keys.public), "--json"]
    done = CliRunner().invoke(verify_command, [f"oci://{repository}:stable", *options])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["address"], said["verified"]) == (address, True)
    other = f"sha256:{'4' * 64}"
    [problem] = problems_of(address, Policy(digest=other))
    assert problem == f"manifest.json: is of the checkpoint {said['checkpoint']}, not {other}"


@pytest.mark.parametrize("signed", [False, True])
def test_a_signature_of_nobody_or_of_somebody_else_is_refused(
    publish_image: PublishImage, make_keys: Any, signed: bool
) -> None:
    signer = KeySigner(make_keys("a").private) if signed else None
    address = publish_image(signer=signer)
    [problem] = problems_of(address, Policy(PublicKey(make_keys("b").public), True))
    expected = "is no signature of key" if signed else "the checkpoint is not signed"
    assert problem.startswith("model.sig: ")
    assert expected in problem


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        (as_published("extra.py", b"x"), "extra.py: is not in the manifest"),
        (as_published(".wh.config.json", b""), ".wh.config.json: is not in the manifest"),
        (as_published("config.json", b"{}"), "config.json: is in two layers"),
        (archive_of(tarfile.TarInfo("./models/x")), "not packed as publishing does"),
        (archive_of(tarfile.TarInfo("bin/../models/x"), b"x"), "not packed as publishing does"),
        (archive_of(link_to("models/x", "/etc")), "holds models/x, which is no plain file"),
        (archive_of(link_to("models", "/etc")), "holds models, which is no plain file"),
        (as_published("x", b"")[:-1024] + b"?" * 1024, "not packed as publishing does"),
        (as_published("config.json", b"{}") + b"more", "not packed as publishing does"),
        (b"text", "is no archive that can be read"),
    ],
)
def test_what_a_layer_puts_over_the_checkpoint_is_found(
    publish_image: PublishImage, layer: bytes, problem: str
) -> None:
    found = problems_of(with_layer(publish_image(), layer))
    assert problem in "\n".join(found)


def test_a_base_may_be_packed_and_holds_nothing_below_models(publish_image: PublishImage) -> None:
    address, packed = publish_image(), "application/vnd.oci.image.layer.v1.tar+gzip"
    shell = gzip.compress(archive_of(tarfile.TarInfo("bin/sh"), b"#!"))
    base = with_layer(address, shell, packed)
    assert verify_for_promotion(open_published(base), Policy()).address == base
    # A second member goes on where the first ends, as programs in Go read it.
    archive = archive_of(tarfile.TarInfo("models/x"), b"x")
    hidden = gzip.compress(archive[:512]) + gzip.compress(archive[512:])
    [problem] = problems_of(with_layer(address, hidden, packed))
    assert problem.endswith("holds files of a model, not packed as publishing does")


def test_a_registry_that_gives_another_content_is_told() -> None:
    layer, other = as_published("x", b"x"), as_published("x", b"y")
    with pytest.raises(StoreError, match="the registry gave another content"):
        unpack("layer", iter((other,)), digest_of(layer), is_packed=False, receive=received)


def received(name: str, size: int, content: Iterator[bytes]) -> FileRecord:
    return record_of(b"".join(content))


def test_a_platform_with_other_files_is_found(publish_image: PublishImage) -> None:
    place = PublishedImage(publish_image())
    place._images = [place._images[0], place._images[1][1:]]
    with pytest.raises(VerificationError, match="for several platforms hold different files"):
        verify_for_promotion(place, Policy())


@pytest.mark.parametrize(
    ("tail", "problem"),
    [
        ("", "names a repository and no image in it; give one by its digest, …@sha256:…"),
        (":none", "there is no such image"),
    ],
)
def test_an_address_without_an_image_is_refused(repository: str, tail: str, problem: str) -> None:
    done = CliRunner().invoke(verify_command, [f"oci://{repository}{tail}"])
    assert isinstance(done.exception, InvalidInputError)
    assert problem in str(done.exception)


def test_an_image_of_something_else_is_no_published_checkpoint(repository: str) -> None:
    layer = archive_of(tarfile.TarInfo("bin/sh"), b"#!")
    target = Repository(parse_image_address(f"oci://{repository}"))
    target.push_blob(digest_of(layer), len(layer), lambda: iter((layer,)))
    target.push_blob(digest_of(b"{}"), 2, lambda: iter((b"{}",)))
    named = {"config": descriptor(CONFIG, b"{}"), "layers": [descriptor(MEDIA_TYPE, layer)]}
    content = {"schemaVersion": 2, "mediaType": MANIFEST, **named}
    target.put_document("other", Document(json.dumps(content).encode(), MANIFEST))
    [problem] = problems_of(f"oci://{repository}:other")
    assert problem.endswith("without it the checkpoint is not published")
    with pytest.raises(InvalidInputError, match="the checkpoint is not published"):
        unpublish(f"oci://{repository}:other")


def test_an_image_is_signed_by_publishing_it_again(
    run: Any, publish_image: PublishImage, repository: str, keys: Any, tmp_path: Path
) -> None:
    address = publish_image(f"oci://{repository}:stable")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(run.recipe.canonical_json())
    words = [f"oci://{repository}:stable", "--recipe", str(recipe), "--key", str(keys.private)]
    words += ["--store", run.store.address]
    done = CliRunner().invoke(sign_command, words)
    assert done.exit_code == 0, done.exception
    *_, said, signed = done.stdout.splitlines()
    assert (said, signed != address) == ("signed", True)
    assert crane("digest", f"{repository}:stable").strip() == signed.rpartition("@")[2]
    policy = Policy(PublicKey(keys.public), True)
    assert verify_for_promotion(open_published(signed), policy).manifest.release == 2
    again = CliRunner().invoke(sign_command, words)
    assert again.stdout == "is signed already\n"


def test_another_checkpoint_than_the_store_s_is_not_signed(
    run: Any, publish_image: PublishImage, make_run: Any, keys: Any
) -> None:
    other = make_run("other", weights=WEIGHTS | {OTHER: b"other"})
    address = publish_image(changed=other)
    with pytest.raises(InvalidInputError, match="is missing"):
        sign_published(run.store, run.recipe, open_published(address), KeySigner(keys.private))


def test_an_image_is_brought_to_a_folder_and_goes(publish_image: PublishImage) -> None:
    address = publish_image()
    with brought_folder(address) as folder:
        assert folder.name == "Tiny-Llama-6"
        assert (folder / BIG).read_bytes() == WEIGHTS[BIG]
    assert not folder.parent.exists()
    damaged = with_layer(address, as_published("extra.py", b"x"))
    with pytest.raises(VerificationError, match="is not in the manifest"), brought_folder(damaged):
        raise AssertionError


def test_an_image_is_taken_back_with_its_tags(publish_image: PublishImage, repository: str) -> None:
    job = f"sha256:{'4' * 64}"
    address = publish_image(f"oci://{repository}:stable", job=job)
    place = open_destination(f"oci://{repository}")
    assert place.published_of(job) == address
    done = CliRunner().invoke(unpublish_command, [f"oci://{repository}:stable"])
    assert done.stdout == f"unpublished {address}\n"
    assert place.published_of(job) is None
    assert Repository(parse_image_address(f"oci://{repository}")).tags() == []
    with pytest.raises(InvalidInputError, match="there is no such image"):
        unpublish(address)
    again = open_published(publish_image())
    assert verify_for_promotion(again, Policy()).manifest.release == 1


def test_a_registry_that_removes_nothing_is_told(
    publish_image: PublishImage, registry: str, repository: str
) -> None:
    publish_image(f"oci://{repository}:stable")
    with proxy_before(int(registry.rpartition(":")[2])) as proxy:
        proxy.break_next(not_allowed, method="DELETE")
        there = repository.replace(registry, f"127.0.0.1:{proxy.port}")
        with pytest.raises(StoreError, match=r"405 .*: remove the image by its own means"):
            unpublish(f"oci://{there}:stable")


def not_allowed(handler: Any, body: bytes) -> bool:
    """As a registry answers in which removing is switched off."""
    handler.send_error(405)
    return True
