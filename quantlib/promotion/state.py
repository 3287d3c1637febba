"""What a service serves, apart from how its kind writes it down."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from quantlib.errors import InvalidInputError
from quantlib.publishing.destination import pin_of
from quantlib.publishing.verification import Verified
from quantlib.serving.options import serve_options
from quantlib.store.receipt import receipt_path

PREFIX = "quantlib.io/"
DESCRIBING = frozenset(
    PREFIX + name
    for name in (
        *("digest", "report", "run", "engine", "published-at", "release"),
        *("model", "previous-uri", "arguments", "promoted-at"),
    )
)
"""The annotations that go with what is served."""

_NUMBER = re.compile(r"-\d+(\.\d+)?")
_STREAMED = ("s3://", "gs://")


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

    def annotation(self, name: str) -> str:
        """An annotation of ours; empty where it is not there."""
        return self.annotations.get(PREFIX + name, "")

    @property
    def digest(self) -> str | None:
        """Of the checkpoint: what the annotation says, if the URI agrees; else None.

        A folder is named by it. An image or a commit is the one that its report is in.
        """
        digest, pin = self.annotation("digest"), pin_of(self.uri or "")
        address, _, _ = self.annotation("report").rpartition("/")
        return digest if digest and pin in (digits(digest), pin_of(address)) and pin else None

    @property
    def published_at(self) -> datetime | None:
        """When what is served was published; None where nothing says it."""
        noted = self.annotation("published-at")
        try:
            when = datetime.fromisoformat(noted) if noted and self.digest else None
        except ValueError:
            return None
        return when if when and when.tzinfo else None

    @property
    def release(self) -> int | None:
        """The number of what is served among the model's releases; None where nothing says it."""
        noted = self.annotation("release")
        return int(noted) if self.digest and re.fullmatch(r"[0-9]{1,16}", noted) else None

    @property
    def model(self) -> str | None:
        """Which model the service is for: what the annotation says, else the URI of ours."""
        if noted := self.annotation("model"):
            return noted
        parts = (self.uri or "").rstrip("/").rsplit("/", 2)
        is_folder = self.digest and parts[-1] == digits(self.digest)
        return parts[1] if is_folder and len(parts) == 3 and parts[1] else None

    def serves(self, published: Verified, uri: str) -> bool:
        """Whether that is a checkpoint from an address."""
        return (self.digest, self.uri) == (published.digest, uri)


def successor(
    current: State, published: Verified, uri: str, kind: str, promoted_at: str | None = None
) -> State:
    """The state that serves a checkpoint in place of another, whose arguments of its own are kept.

    ``promoted_at`` is when that was begun, where the cluster itself is changed.

    Raises:
        InvalidInputError: A service of this kind cannot read such a URI.
    """
    arguments = _arguments(published, uri, kind)
    earlier = current.annotation("arguments")
    replaced = {*arguments, *filter(None, earlier.split(","))}
    words = [*without(current.arguments, replaced), *serve_options(arguments)]
    manifest, last = published.manifest, published.report.provenance.receipts[-1]
    notes = {
        "digest": published.digest,
        "report": report_address(published),
        "run": receipt_path(last.step, last.key),
        "engine": manifest.figures.engine,
        "published-at": manifest.published_at.isoformat(timespec="seconds"),
        "release": str(manifest.release),
        "model": manifest.name,
        "arguments": ",".join(sorted(arguments)),
        "previous-uri": current.uri or None,
        "promoted-at": promoted_at,
    }
    told = {PREFIX + name: said for name, said in notes.items() if said is not None}
    return State(uri, tuple(words), told)


def _arguments(published: Verified, uri: str, kind: str) -> dict[str, Any]:
    """Arguments of vLLM's server, by name.

    KServe hands vLLM a folder. In a plain Deployment vLLM itself reads the URI, from object storage
    with its streaming loader.
    """
    option, is_streamed = "--storage-uri", uri.startswith(_STREAMED)
    if kind != "Deployment":
        if "://" not in uri:
            what = f"{uri} is no URI that KServe reads"
            raise InvalidInputError.one(option, what, "give s3://… or pvc://CLAIM/PATH")
        return published.serve
    if "://" in uri and not is_streamed:
        raise InvalidInputError.one(
            option,
            f"vLLM in a Deployment does not read {uri}",
            "give s3://… or gs://…, or the path where its container has the folder",
        )
    return published.serve | ({"load_format": "runai_streamer"} if is_streamed else {})


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


def report_address(published: Verified) -> str:
    """Where a checkpoint's report is."""
    return f"{published.address.rstrip('/')}/{published.manifest.report}"


def digits(digest: str) -> str:
    """Those of a digest alone."""
    return digest.removeprefix("sha256:")


def short(digest: str) -> str:
    """The first digits of a digest, fit for names and messages."""
    return digits(digest)[:12]
