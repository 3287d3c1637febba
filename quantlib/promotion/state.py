"""What a service serves, apart from how its kind writes it down."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from quantlib.promotion.published import Published
from quantlib.serving.options import serve_options

PREFIX = "quantlib.io/"
DIGEST = PREFIX + "digest"
REPORT = PREFIX + "report"
RUN = PREFIX + "run"
ENGINE = PREFIX + "engine"
PUBLISHED_AT = PREFIX + "published-at"
RELEASE = PREFIX + "release"
MODEL = PREFIX + "model"
"""Which model the service serves: the name that a checkpoint is published under."""

PREVIOUS_URI = PREFIX + "previous-uri"
ARGUMENTS = PREFIX + "arguments"
PROMOTED_AT = PREFIX + "promoted-at"
DESCRIBING = frozenset(
    {
        *(DIGEST, REPORT, RUN, ENGINE, PUBLISHED_AT, RELEASE, MODEL),
        *(PREVIOUS_URI, ARGUMENTS, PROMOTED_AT),
    }
)
"""The annotations that go with what is served."""


_NUMBER = re.compile(r"-\d+(\.\d+)?")


@dataclass(frozen=True)
class State:
    """What a service serves.

    Attributes:
        uri: Where the model is; None where the service has none.
        arguments: Words for vLLM's server.
        annotations: Ours, which say what the model is.
    """

    uri: str | None
    arguments: tuple[str, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        """Of the checkpoint: what the annotation says, if the URI agrees; else None."""
        digest = self.annotations.get(DIGEST)
        if digest and (self.uri or "").rstrip("/").endswith(digest.removeprefix("sha256:")):
            return digest
        return None

    @property
    def published_at(self) -> datetime | None:
        """When what is served was published; None where nothing says it."""
        noted = self.annotations.get(PUBLISHED_AT)
        try:
            when = datetime.fromisoformat(noted) if noted and self.digest else None
        except ValueError:
            return None
        return when if when and when.tzinfo else None

    @property
    def release(self) -> int | None:
        """The number of what is served among the model's releases; None where nothing says it."""
        noted = self.annotations.get(RELEASE, "")
        return int(noted) if self.digest and re.fullmatch(r"[0-9]{1,16}", noted) else None

    @property
    def model(self) -> str | None:
        """Which model the service is for: what the annotation says, else the URI of ours."""
        if noted := self.annotations.get(MODEL):
            return noted
        parts = (self.uri or "").rstrip("/").rsplit("/", 2)
        return parts[1] if self.digest and len(parts) == 3 and parts[1] else None


def successor(
    current: State, published: Published, uri: str, arguments: Mapping[str, Any]
) -> State:
    """The state that serves a checkpoint in place of another.

    Args:
        current: What it replaces. Arguments that came from no checkpoint are kept.
        published: What to serve.
        uri: Where the service finds it.
        arguments: Of vLLM's server, by name; they win over the kept ones.
    """
    earlier = current.annotations.get(ARGUMENTS, "")
    replaced = {*arguments, *filter(None, earlier.split(","))}
    words = [*without(current.arguments, replaced), *serve_options(arguments)]
    annotations = {
        DIGEST: published.digest,
        REPORT: published.report_address,
        RUN: published.run,
        ENGINE: published.manifest.figures.engine,
        PUBLISHED_AT: published.manifest.published_at.isoformat(timespec="seconds"),
        RELEASE: str(published.manifest.release),
        MODEL: published.manifest.name,
        ARGUMENTS: ",".join(sorted(arguments)),
    }
    if current.uri:
        annotations[PREVIOUS_URI] = current.uri
    return State(uri, tuple(words), annotations)


def without(words: Sequence[str], names: Iterable[str]) -> list[str]:
    """Words of a command line without some options and their values.

    Args:
        words: ``--name value``, ``--name=value``, ``--name`` or ``--no-name``, and other words.
        names: Names of options, with underscores.
    """
    options = {f"--{name.replace('_', '-')}" for name in names}
    kept, dropping = [], False
    for word in words:
        if word.startswith("-") and not _NUMBER.fullmatch(word):
            name = word.partition("=")[0].replace("_", "-")
            dropping = name in options or name.replace("--no-", "--", 1) in options
        if not dropping:
            kept.append(word)
    return kept
