"""What is refused before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from quantlib.errors import Problem, QuantlibError
from quantlib.promotion.published import Published, published_at, short
from quantlib.promotion.runtimes import Runtime
from quantlib.promotion.state import State
from quantlib.store import open_store

_TAG = re.compile(r":v?(\d+\.\d+\.\d+(?:\.?(?:rc|post|dev)\d+)?)")


@dataclass(frozen=True)
class Allowances:
    """What a person allows that is refused otherwise.

    Attributes:
        runtime_version: vLLM's version where the service runs; None to read it off the image's tag.
        runtime_drift: Another version than the one that validated, or an unknown one.
        downgrade: A checkpoint that was published before the one that serves.
    """

    runtime_version: str | None = None
    runtime_drift: bool = False
    downgrade: bool = False


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
    if not allowances.downgrade:
        problems += _downgrade(published, current)
    return problems


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


def _downgrade(published: Published, current: State) -> list[Problem]:
    served = current.published_at or _look_up(current.uri)
    # Annotations hold whole seconds.
    if served is None or published.published_at.replace(microsecond=0) >= served.replace(
        microsecond=0
    ):
        return []
    return [
        Problem(
            published.store.address,
            f"was published {published.published_at:%Y-%m-%d %H:%M} UTC, before what serves now "
            f"({short((current.uri or '').rstrip('/').rpartition('/')[2])}, "
            f"{served:%Y-%m-%d %H:%M} UTC)",
            "--allow-downgrade serves it all the same",
        )
    ]


def _look_up(uri: str | None) -> datetime | None:
    """When the folder at a URI was published, where it can be read from here and is published."""
    if not uri or not uri.startswith("s3://"):
        return None
    try:
        return published_at(open_store(uri.rstrip("/")))
    except QuantlibError:
        return None
