"""What is refused before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from quantlib.errors import InvalidInputError, Problem, QuantlibError
from quantlib.promotion.merging import Document
from quantlib.promotion.runtimes import Runtime
from quantlib.promotion.state import State, digits, short
from quantlib.publishing.destination import address_of, pin_of
from quantlib.publishing.destination import storage_uri as uri_of
from quantlib.publishing.published import manifest_of
from quantlib.publishing.reading import open_published
from quantlib.publishing.verification import Policy, Verified, verify_for_promotion
from quantlib.report.manifest import require_in_folder

_TAG = re.compile(r":v?(\d+\.\d+\.\d+(?:\.?(?:rc|post|dev)\d+)?)")
_ANY_SIGNATURE = Policy()
_READABLE = ("s3://", "oci://", "hf://")
_KEEPERS = {
    "argocd.argoproj.io/": "Argo CD",
    "kustomize.toolkit.fluxcd.io/": "Flux",
    "helm.toolkit.fluxcd.io/": "Flux",
}
"""Who keeps an object as git says, by the beginning of the labels and annotations that it sets."""

_MANAGERS = {
    "argocd-controller": "Argo CD",
    "kustomize-controller": "Flux",
    "helm-controller": "Flux",
}
"""The same by the names under which they write fields."""


@dataclass(frozen=True)
class Allowances:
    """What a person allows that is refused otherwise.

    Attributes:
        runtime_version: vLLM's version where the service runs; None to read it off the image's tag.
        runtime_drift: Another version than the one that validated, or an unknown one.
        downgrade: A release of a lower number, or an earlier time, than the one that serves.
        model: Name of the model that the service is for; None for what the service itself says.
        other_model: A checkpoint of another model than that.
        managed: To change a service in the cluster that something else keeps as git says.
    """

    runtime_version: str | None = None
    runtime_drift: bool = False
    downgrade: bool = False
    model: str | None = None
    other_model: bool = False
    managed: bool = False


def check_published(address: str, policy: Policy = _ANY_SIGNATURE) -> Verified:
    """Verifies a published checkpoint file by file, and that its signature is as the policy asks.

    Args:
        address: As :func:`quantlib.publishing.reading.open_published` takes it.
        policy: Whose signature it must carry.

    Raises:
        InvalidInputError: Its files lie elsewhere.
        VerificationError: It is not what it says of itself, or did not pass the gate.
        StoreError: It cannot be read.
    """
    verified = verify_for_promotion(open_published(address), policy)
    require_in_folder(verified.address, verified.manifest)
    return verified


def storage_uri(published: Verified, given: str | None = None) -> str:
    """Where a service finds a checkpoint: what never means another one.

    A folder named by the digest, ending in a slash: without it, KServe would also fetch other
    folders whose names start like this one's. An image by its digest, a repository by the commit.
    ``given`` is the same as the cluster sees it, where that is not the checkpoint's address.

    Raises:
        InvalidInputError: It is not named so, or only this machine sees it.
    """
    own = uri_of(published.address)
    if given is None and own is None:
        raise InvalidInputError.one(
            published.address,
            "is a folder of this machine, which no cluster sees",
            "name the same folder as the cluster does with --storage-uri, such as "
            f"pvc://CLAIM/PATH/{digits(published.digest)}/",
        )
    uri = given or own or ""
    pin, own_pin = pin_of(uri), pin_of(published.address)
    if pin == digits(published.digest):
        return f"{uri.rstrip('/')}/"
    if not pin or pin != own_pin:
        named = f"the checkpoint's digest {published.digest}"
        named += f" or in {own_pin}" if own_pin != digits(published.digest) else ""
        raise InvalidInputError.one("--storage-uri", f"{uri} does not end in {named}")
    return uri


def managed_by(document: Document) -> str | None:
    """What keeps a service as git says, and how that is known; None where nothing tells."""
    metadata = document["metadata"]
    for part in ("annotations", "labels"):
        for name, value in sorted((metadata.get(part) or {}).items()):
            for beginning, keeper in _KEEPERS.items():
                if name.startswith(beginning):
                    return f"{keeper} ({part[:-1]} {name}: {value})"
    for entry in metadata.get("managedFields") or ():
        if writer := _MANAGERS.get(entry.get("manager", "")):
            return f"{writer} (fields written by {entry['manager']})"
    return None


def managed_problems(document: Document, allowances: Allowances) -> Iterator[Problem]:
    """What speaks against changing a service in the cluster and not in git."""
    if not allowances.managed and (keeper := managed_by(document)):
        yield Problem(
            f"{document['kind']} {document['metadata']['name']}",
            f"is kept by {keeper}, which puts back what git says",
            "promote with --repo and --overlay, or change it all the same with --allow-managed",
        )


def problems_of(
    published: Verified, current: State, runtime: Callable[[], Runtime], allowances: Allowances
) -> Iterator[Problem]:
    """Everything that speaks against serving a checkpoint in place of what serves now.

    ``runtime`` is asked what would run vLLM, where nobody says its version.
    """
    if not allowances.runtime_drift:
        yield from _drift(published, allowances.runtime_version, runtime)
    name, served = published.manifest.name, allowances.model or current.model
    if not allowances.other_model and served not in (None, name):
        yield Problem(
            published.address,
            f"is of the model {name}, but the service is for {served}",
            "--allow-other-model serves it all the same",
        )
    if not allowances.downgrade:
        yield from _downgrade(published, current)


def _release(version: str) -> str:
    """A version without what names its build, as tags of images have it."""
    return version.removeprefix("v").partition("+")[0]


def _drift(
    published: Verified, given: str | None, runtime: Callable[[], Runtime]
) -> Iterator[Problem]:
    engine, _, validated = published.manifest.figures.engine.partition(" ")
    where, remedy = "runtime", "--allow-runtime-drift serves it all the same"
    if engine != "vllm":
        yield Problem(where, f"the checkpoint was validated with {engine}, not vLLM", remedy)
        return
    found = Runtime(None, "the service") if given else runtime()
    tagged = _TAG.search(found.image or "")
    version = _release(given) if given else (tagged and tagged[1])
    if version is None:
        tag = f"the tag of {found.image} does not say it, named by {found.source}"
        yield Problem(
            where,
            f"which vLLM would serve is not known ({tag if found.image else found.source}); "
            f"{validated} validated the checkpoint",
            f"say it with --runtime-version, or {remedy}",
        )
    elif version != _release(validated):
        what = f"{found.source} runs vLLM {version}, but {validated} validated the checkpoint"
        yield Problem(where, what, remedy)


def _downgrade(published: Verified, current: State) -> Iterator[Problem]:
    """Compares what the manifests say, which signatures cover, and not times of files."""
    manifest = published.manifest
    model, release, published_at = current.model, current.release, current.published_at
    uri = current.uri or ""
    if release is None and published_at is None and uri.startswith(_READABLE):
        with suppress(QuantlibError):  # it is not ours, or not to be read from here
            before = manifest_of(open_published(address_of(uri)))
            model, release, published_at = before.name, before.release, before.published_at
    lower = release is not None and model == manifest.name and manifest.release < release
    if not lower and (published_at is None or manifest.published_at >= published_at):
        return
    served = [short(pin_of(uri) or uri.rstrip("/").rpartition("/")[2])]
    served += [f"release {release}"] if release is not None else []
    served += [_minute(published_at)] if published_at else []
    yield Problem(
        published.address,
        f"is release {manifest.release}, published {_minute(manifest.published_at)}, "
        f"before what serves now ({', '.join(filter(None, served))})",
        "--allow-downgrade serves it all the same",
    )


def _minute(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
