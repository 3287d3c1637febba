"""Publishes checkpoints as images of a registry, which KServe mounts as it does a model's folder.

The image is named by the digest of its index. Its tags are the 64 digits of the checkpoint's
digest, by which a later run finds it, ``job-`` and the digits of the watcher's job, and the one
that the address names, which moves. What is found under them is evidence of nothing, as in a
folder.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from quantlib.errors import InvalidInputError, Problem, QuantlibError, StoreError
from quantlib.publishing.destination import Draft, Member, Publication
from quantlib.publishing.folder import numbered, stands
from quantlib.publishing.oci.address import parse_image_address
from quantlib.publishing.oci.client import Document, Repository, digest_of
from quantlib.publishing.oci.image import MODEL, RELEASE, BaseImage, find_bases, image_of
from quantlib.publishing.oci.layers import MEDIA_TYPE, Layer, files_of, layers_of
from quantlib.publishing.signing import Signer, sign_manifest
from quantlib.report.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    parse_manifest,
)
from quantlib.report.text import size
from quantlib.store import lease

_PARALLEL_LAYERS = 4
_MAX_MANIFEST_BYTES = 64 << 20
_DIGITS = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class _Found:
    """An image that is there, as it says."""

    index: Document
    manifest: bytes
    signature: bytes | None


class ImageDestination:
    """A repository of a registry.

    Args:
        address: ``oci://registry/repository``, maybe with ``:tag``.
        base_image: Address of an image whose layers lie below; empty for none.

    Raises:
        InvalidInputError: An address is none.
    """

    def __init__(self, address: str, base_image: str = "") -> None:
        parsed = parse_image_address(address)
        if ":" in parsed.reference:
            what = "names an image by its digest, which is known when it is there"
            raise InvalidInputError.one(address, what, "name the repository, or a tag in it")
        self.address = address
        self._tag = parsed.reference
        self._repository = Repository(replace(parsed, reference=""))
        self._base = Repository(parse_image_address(base_image)) if base_image else None

    def problems(self) -> list[Problem]:
        """Why nothing could be pushed there, and why there is no base image."""
        problems = self._repository.push_problems()
        try:
            self._bases()
        except (InvalidInputError, StoreError) as error:
            found = getattr(error, "problems", ())
            problems += found or [Problem("publish.base_image", str(error))]
        return problems

    def publish(self, draft: Draft, signer: Signer | None, replace: bool) -> Publication:
        """Pushes a checkpoint, unless it is there already.

        Args:
            draft: What was built.
            signer: Who signs; None for nobody.
            replace: Whether a signature by somebody else is replaced.

        Raises:
            InvalidInputError: The registry is not open, or holds what somebody else signed.
            StoreError: A file of the store is damaged, or the registry fails.
        """
        digits = draft.manifest.checkpoint.removeprefix("sha256:")
        where = f"{replace_tag(self.address, digits)}: {SIGNATURE_NAME}"
        with lease(draft.store, f"publish/{draft.manifest.name}"):
            found, index = self._find(digits), None
            if found and stands(
                where, found.manifest, found.signature, draft.manifest, signer, replace
            ):
                manifest, signature = found.manifest, found.signature
                index = found.index if self._is_whole(found.index) else None
            else:
                release = 1 + self._last_release(draft.manifest.name)
                manifest = numbered(draft.manifest, release)
                signature = sign_manifest(manifest, signer) if signer else None
            if index is None:
                index = self._push(draft, manifest, signature)
                self._repository.put_document(digits, index)
            if self._tag:
                self._repository.put_document(self._tag, index)
        return Publication(self._repository.address.at(index.digest), manifest)

    def enter_job(self, job: str, publication: Publication) -> None:
        """Notes what a job of the watcher led to, as a tag of the image."""
        _, _, digest = publication.address.rpartition("@")
        document = self._repository.document(digest)
        if document is None:
            raise StoreError(publication.address, "is not there any more; publish again")
        self._repository.put_document(_job_tag(job), document)

    def published_of(self, job: str) -> str | None:
        """The image that a job led to; None where there is none."""
        document = self._repository.document(_job_tag(job))
        return self._repository.address.at(document.digest) if document else None

    def _bases(self) -> dict[str, BaseImage]:
        return find_bases(self._base) if self._base else {}

    def _find(self, tag: str) -> _Found | None:
        """What is there under a tag; None where that is no image of a checkpoint."""
        index = self._repository.document(tag)
        if index is None:
            return None
        try:
            (first, *_) = index.parsed(tag)["manifests"]
            document = self._repository.document(first["digest"])
            if document is None:
                return None
            last = document.parsed(tag)["layers"][-1]
            files = files_of(self._repository.blob(last["digest"], _MAX_MANIFEST_BYTES))
            return _Found(index, files[MANIFEST_NAME], files.get(SIGNATURE_NAME))
        except (QuantlibError, KeyError, IndexError, TypeError, ValueError):
            return None  # damaged, or of somebody else: it is replaced

    def _is_whole(self, index: Document) -> bool:
        """Whether everything that an index names is there."""
        for entry in index.parsed(self.address)["manifests"]:
            manifest = self._repository.document(entry["digest"])
            if manifest is None:
                return False
            content = manifest.parsed(self.address)
            named = [content["config"], *content["layers"]]
            if not all(self._repository.has_blob(each["digest"]) for each in named):
                return False
        return True

    def _last_release(self, model: str) -> int:
        """The highest number of a release of a model in this repository."""
        releases = [0]
        for tag in self._repository.tags():
            document = self._repository.document(tag) if _DIGITS.fullmatch(tag) else None
            said = document.parsed(tag).get("annotations") if document else None
            if isinstance(said, dict) and said.get(MODEL) == model:
                number = str(said.get(RELEASE))
                releases.append(int(number) if number.isdecimal() else 0)
        return max(releases)

    def _push(self, draft: Draft, manifest: bytes, signature: bytes | None) -> Document:
        published = parse_manifest(manifest, MANIFEST_NAME)
        bases = self._bases()
        base_layers = {layer["digest"]: layer for base in bases.values() for layer in base.layers}
        for layer in base_layers.values():
            assert self._base is not None  # it has layers
            chunks = partial(self._base.blob_chunks, layer["digest"])
            self._repository.push_blob(layer["digest"], layer["size"], chunks)
        signed = [Member.of(MANIFEST_NAME, manifest)]
        if signature is not None:
            signed.append(Member.of(SIGNATURE_NAME, signature))
        layers = layers_of(draft.checkpoint_members(), draft.text_members())
        layers.append(Layer(tuple(signed)))
        with ThreadPoolExecutor(_PARALLEL_LAYERS) as pool:
            descriptors = list(pool.map(self._push_layer, layers))
        image = image_of(manifest, published, descriptors, bases)
        for config in image.configs:
            chunks = partial(iter, (config,))
            self._repository.push_blob(digest_of(config), len(config), chunks)
        for document in (*image.manifests, image.index):
            self._repository.put_document(document.digest, document)
        return image.index

    def _push_layer(self, layer: Layer) -> dict[str, Any]:
        digest = layer.digest()
        was_sent = self._repository.push_blob(digest, layer.size, layer.chunks)
        done = "pushed" if was_sent else "is there already"
        print(f"{layer.title}: {size(layer.size)}, {done}", flush=True)
        return {"mediaType": MEDIA_TYPE, "digest": digest, "size": layer.size}


def replace_tag(address: str, tag: str) -> str:
    """The address of another tag of a repository."""
    return str(replace(parse_image_address(address), reference=tag))


def _job_tag(job: str) -> str:
    return f"job-{job.removeprefix('sha256:')}"
