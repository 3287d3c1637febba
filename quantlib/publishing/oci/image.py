"""The documents of an image that holds a published checkpoint, and what one says of itself.

An index names one manifest for each platform; all have the same layers on those of a base, if there
is one, so that the digest of the index names the checkpoint wherever it is served. Layers and
documents follow from the published manifest and its signature alone: the same bytes, the same
digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantlib.errors import InvalidInputError
from quantlib.publishing.oci.client import INDEX, MANIFEST, Document, Repository, digest_of
from quantlib.report.manifest import Manifest

CONFIG = "application/vnd.oci.image.config.v1+json"
PLATFORMS = ("amd64", "arm64")
MODEL, RELEASE = "quantlib.io/model", "quantlib.io/release"
_MAX_CONFIG_BYTES = 4 << 20
_OF_DOCKER = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": (
        "application/vnd.oci.image.layer.v1.tar+gzip"
    ),
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
}
"""Layers of Docker's images, which are the same bytes by another name."""

Descriptor = Mapping[str, Any]
"""``mediaType``, ``digest`` and ``size`` of what a document names."""


@dataclass(frozen=True)
class BaseImage:
    """What an image lies on, for one platform.

    Attributes:
        config: Its configuration: environment, user, the digests of its layers unpacked.
        layers: What a manifest names.
    """

    config: Mapping[str, Any]
    layers: tuple[Descriptor, ...] = ()


@dataclass(frozen=True)
class Image:
    """The documents of an image, in the order in which they are pushed.

    Attributes:
        configs: Blobs, one for each platform.
        manifests: One for each platform.
        index: Names the manifests.
    """

    configs: tuple[bytes, ...]
    manifests: tuple[Document, ...]
    index: Document


def annotations_of(manifest: bytes, published: Manifest) -> dict[str, str]:
    """What an image says of the checkpoint in it.

    Args:
        manifest: The published ``manifest.json``.
        published: The same, parsed.
    """
    return {
        "org.opencontainers.image.title": published.name,
        "org.opencontainers.image.version": str(published.release),
        "org.opencontainers.image.created": _time(published),
        MODEL: published.name,
        RELEASE: str(published.release),
        "quantlib.io/digest": published.checkpoint,
        "quantlib.io/manifest": digest_of(manifest),
        "quantlib.io/recipe": published.recipe,
    }


def image_of(
    manifest: bytes,
    published: Manifest,
    layers: Sequence[Descriptor],
    bases: Mapping[str, BaseImage],
) -> Image:
    """The documents of an image.

    Args:
        manifest: The published ``manifest.json``.
        published: The same, parsed.
        layers: The checkpoint's, uncompressed.
        bases: What they lie on, by platform; empty for nothing, on all platforms.
    """
    annotations = annotations_of(manifest, published)
    configs, manifests, entries = [], [], []
    for platform in bases or PLATFORMS:
        base = bases.get(platform, BaseImage({}))
        config = _rendered(_config(base, platform, layers, _time(published)))
        document = Document(
            _rendered(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST,
                    "config": descriptor(CONFIG, config),
                    "layers": [*base.layers, *layers],
                    "annotations": annotations,
                }
            ),
            MANIFEST,
        )
        configs.append(config)
        manifests.append(document)
        where = {"architecture": platform, "os": "linux"}
        entries.append(descriptor(MANIFEST, document.data) | {"platform": where})
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": entries,
        "annotations": annotations,
    }
    return Image(tuple(configs), tuple(manifests), Document(_rendered(index), INDEX))


def descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    """How a document names another one."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def find_bases(repository: Repository) -> dict[str, BaseImage]:
    """An image to lie on, by platform.

    Args:
        repository: Where it is; its address says which one.

    Raises:
        InvalidInputError: There is none, or none for a platform of servers.
        StoreError: The registry fails.
    """
    where = str(repository.address)
    found = repository.document(repository.address.reference or "latest")
    if found is None:
        raise InvalidInputError.one(where, "there is no such image", "push it there first")
    content, bases = found.parsed(where), {}
    named = [entry["digest"] for entry in content.get("manifests", ()) if _is_wanted(entry)]
    others = [repository.document(digest) for digest in named]
    for manifest in (each for each in others or [found] if each is not None):
        base = _base(repository, manifest.parsed(where))
        if (platform := base.config.get("architecture")) in PLATFORMS:
            bases[str(platform)] = base
    if not bases:
        what = f"has no image for linux on {' or '.join(PLATFORMS)}"
        raise InvalidInputError.one(where, what, "name another base image")
    return bases


def _is_wanted(entry: Mapping[str, Any]) -> bool:
    platform = entry.get("platform", {})
    return platform.get("os") == "linux" and platform.get("architecture") in PLATFORMS


def _base(repository: Repository, manifest: Mapping[str, Any]) -> BaseImage:
    try:
        config = repository.blob(manifest["config"]["digest"], _MAX_CONFIG_BYTES)
        layers = tuple(
            {
                "mediaType": _OF_DOCKER.get(each["mediaType"], each["mediaType"]),
                "digest": each["digest"],
                "size": each["size"],
            }
            for each in manifest["layers"]
        )
    except (KeyError, TypeError):
        raise InvalidInputError.one(str(repository.address), "is no image of layers") from None
    parsed = Document(config, CONFIG).parsed(f"{repository.address}: its config")
    return BaseImage(parsed, layers)


def _config(
    base: BaseImage, platform: str, layers: Sequence[Descriptor], created: str
) -> dict[str, Any]:
    below = base.config.get("rootfs", {}).get("diff_ids", [])
    history = list(base.config.get("history", []))
    history += [{"created": created, "created_by": "quantlib publish"} for _ in layers]
    kept = {name: base.config[name] for name in ("config", "variant") if name in base.config}
    # Not compressed, a layer unpacked has the digest of the layer.
    unpacked = [*below, *(layer["digest"] for layer in layers)]
    return {
        **kept,
        "created": created,
        "architecture": platform,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": unpacked},
        "history": history,
    }


def _time(published: Manifest) -> str:
    return published.published_at.isoformat().replace("+00:00", "Z")


def _rendered(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"
