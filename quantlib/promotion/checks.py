"""What is refused before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from quantlib.errors import Problem, QuantlibError
from quantlib.promotion.kinds import Document
from quantlib.promotion.published import Published, short
from quantlib.promotion.runtimes import Runtime
from quantlib.promotion.state import State
from quantlib.report.manifest import read_manifest
from quantlib.store import open_store

_TAG = re.compile(r":v?(\d+\.\d+\.\d+(?:\.?(?:rc|post|dev)\d+)?)")


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


def managed_by(document: Document) -> str | None:
    """What keeps a service as git says, and how that is known; None where nothing tells.

    Args:
        document: The service, as the cluster has it.
    """
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


def managed_problems(document: Document, allowances: Allowances) -> list[Problem]:
    """What speaks against changing a service in the cluster and not in git.

    Args:
        document: The service, as the cluster has it.
        allowances: What to let pass.
    """
    keeper = managed_by(document)
    if keeper is None or allowances.managed:
        return []
    return [
        Problem(
            f"{document['kind']} {document['metadata']['name']}",
            f"is kept by {keeper}, which puts back what git says",
            "promote with --repo and --overlay, or change it all the same with --allow-managed",
        )
    ]


def git_and_cluster(in_git: State, in_cluster: State) -> str | None:
    """In a line how the two differ in what they serve; None where they do not.

    Args:
        in_git: What the overlay serves before it is changed.
        in_cluster: What the service in the cluster serves.
    """
    if (in_git.uri, in_git.digest) == (in_cluster.uri, in_cluster.digest):
        return None
    return (
        f"note: git says {in_git.uri or 'nothing'}, and the cluster serves "
        f"{in_cluster.uri or 'nothing'}: it was changed directly, or has not taken over git yet"
    )


def problems_of(
    published: Published, current: State, runtime: Callable[[], Runtime], allowances: Allowances
) -> list[Problem]:
    """Everything that speaks against serving a checkpoint in place of what serves now.

    Args:
        published: What is to be served.
        current: What serves now.
        runtime: Asked what would run vLLM, where nobody says its version.
        allowances: What to let pass.
    """
    problems = []
    if not allowances.runtime_drift:
        problems += _drift(published, allowances.runtime_version, runtime)
    if not allowances.other_model:
        problems += _other_model(published, allowances.model or current.model)
    if not allowances.downgrade:
        problems += _downgrade(published, current)
    return problems


def _other_model(published: Published, served: str | None) -> list[Problem]:
    name = published.manifest.name
    if served in (None, name):
        return []
    return [
        Problem(
            published.store.address,
            f"is of the model {name}, but the service is for {served}",
            "--allow-other-model serves it all the same",
        )
    ]


def _version(image: str | None) -> str | None:
    match = _TAG.search(image or "")
    return match[1] if match else None


def _release(version: str) -> str:
    """A version without what names its build, as tags of images have it."""
    return version.removeprefix("v").partition("+")[0]


def _drift(
    published: Published, given: str | None, runtime: Callable[[], Runtime]
) -> list[Problem]:
    engine, _, validated = published.manifest.figures.engine.partition(" ")
    where, remedy = "runtime", "--allow-runtime-drift serves it all the same"
    if engine != "vllm":
        return [Problem(where, f"the checkpoint was validated with {engine}, not vLLM", remedy)]
    found = Runtime(None, "the service") if given else runtime()
    version = _release(given) if given else _version(found.image)
    if version is None:
        tag = f"the tag of {found.image} does not say it, named by {found.source}"
        return [
            Problem(
                where,
                f"which vLLM would serve is not known ({tag if found.image else found.source}); "
                f"{validated} validated the checkpoint",
                f"say it with --runtime-version, or {remedy}",
            )
        ]
    if version != _release(validated):
        what = f"{found.source} runs vLLM {version}, but {validated} validated the checkpoint"
        return [Problem(where, what, remedy)]
    return []


@dataclass(frozen=True)
class _Served:
    """What is known of the release that serves; each None where nothing says it."""

    model: str | None
    release: int | None
    published_at: datetime | None


def _downgrade(published: Published, current: State) -> list[Problem]:
    """Compares what the manifests say, which signatures cover, and not times of files."""
    manifest, served = published.manifest, _served(current)
    numbered = served.model == manifest.name and served.release is not None
    lower = numbered and manifest.release < (served.release or 0)
    earlier = served.published_at is not None and manifest.published_at < served.published_at
    if not lower and not earlier:
        return []
    before = ", ".join(
        filter(
            None,
            (
                short((current.uri or "").rstrip("/").rpartition("/")[2]),
                f"release {served.release}" if served.release is not None else None,
                f"{served.published_at:%Y-%m-%d %H:%M} UTC" if served.published_at else None,
            ),
        )
    )
    return [
        Problem(
            published.store.address,
            f"is release {manifest.release}, published {manifest.published_at:%Y-%m-%d %H:%M} UTC, "
            f"before what serves now ({before})",
            "--allow-downgrade serves it all the same",
        )
    ]


def _served(current: State) -> _Served:
    if current.release is not None or current.published_at is not None:
        return _Served(current.model, current.release, current.published_at)
    if current.uri and current.uri.startswith("s3://"):
        with suppress(QuantlibError):  # it is not ours, or not to be read from here
            manifest = read_manifest(open_store(current.uri.rstrip("/")))
            return _Served(manifest.name, manifest.release, manifest.published_at)
    return _Served(None, None, None)
