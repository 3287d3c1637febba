"""The record of a promotion in progress: an annotation of a Lease, which one writer holds."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.api import ConflictError, UnreachableError
from quantlib.promotion.clock import Clock
from quantlib.promotion.cluster import Service
from quantlib.promotion.kinds import Document
from quantlib.promotion.published import short
from quantlib.promotion.state import PREFIX

RECORD = PREFIX + "promotion"
LAST = PREFIX + "last-promotion"
BEFORE = PREFIX + "before"
STALE = timedelta(seconds=120)
"""A holder that has not written for so long is gone."""

PATIENCE_SECONDS = 15.0
"""How long a change is tried again while the API server does not answer."""

_ATTEMPTS = 10
_SECONDS_BETWEEN_TRIES = 0.5


class LostError(QuantlibError):
    """Somebody else holds the promotion now."""


@dataclass(frozen=True)
class Record:
    """A promotion in progress.

    Attributes:
        holder: Who promotes: host, process and a random part.
        uid: Of the object that is changed; another one of its name is another service.
        digest: What is promoted.
        step: What is being done.
        began: When it was begun, which a promotion that goes on with it says again.
        renewed: When the holder last wrote.
        before: The object to go back to, without status, as JSON.
        route: The HTTPRoute to go back to, in the same way; None without one.
    """

    holder: str
    uid: str
    digest: str
    step: str
    began: str
    renewed: str
    before: str
    route: str | None = None

    def abandoned(self, clock: Clock) -> bool:
        """Whether its holder has not written for long."""
        return clock.utc() - datetime.fromisoformat(self.renewed) > STALE

    @property
    def document(self) -> Document:
        """The object to go back to."""
        return parsed(self.before)

    @property
    def route_document(self) -> Document | None:
        """The HTTPRoute to go back to."""
        return parsed(self.route) if self.route else None

    def __str__(self) -> str:
        return (
            f"the promotion of {short(self.digest)} by {self.holder} "
            f"(step {self.step}, last heard of {self.renewed})"
        )


def snapshot(document: Document) -> str:
    """What is kept of an object to go back to it."""
    metadata = {
        name: value
        for name, value in document["metadata"].items()
        if name in ("name", "namespace", "annotations")
    }
    kept = {name: document[name] for name in ("apiVersion", "kind", "spec")}
    return json.dumps(kept | {"metadata": metadata})


def parsed(text: str) -> Document:
    """What :func:`snapshot` kept.

    Raises:
        ValueError: It is no object.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("spec"), dict):
        raise ValueError("no object")
    return document


def new_holder() -> str:
    """A name for this process, unlike any other's."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"


def record_of(notes: Document, uid: str | None = None) -> Record | None:
    """The promotion in progress, if there is one.

    Args:
        notes: :meth:`quantlib.promotion.cluster.Service.notes`.
        uid: Of the object; the promotion of another one of its name is over, for that is gone.

    Raises:
        InvalidInputError: The annotation is not as we write it.
    """
    text = _annotations(notes).get(RECORD)
    if not text:
        return None
    try:
        record = Record(**json.loads(text))
        if datetime.fromisoformat(record.renewed).tzinfo is None:
            raise ValueError("without a time zone")
        _ = record.document, record.route_document
    except (ValueError, TypeError):
        raise InvalidInputError.one(
            f"annotation {RECORD} of the Lease {notes['metadata']['name']}",
            f"holds no promotion that quantlib wrote: {text[:200]}",
            "look at what the service serves, and remove the annotation",
        ) from None
    return record if uid in (None, record.uid) else None


def require_free(service: Service, record: Record | None, digest: str | None, clock: Clock) -> None:
    """Checks that nobody promotes.

    Args:
        service: The service.
        record: The promotion in progress.
        digest: Of the checkpoint that is to go on where an abandoned promotion of it stopped; None
            where any may be ended.
        clock: The time.

    Raises:
        QuantlibError: Somebody does.
        InvalidInputError: Somebody did, with another checkpoint.
    """
    if record is None:
        return
    if not record.abandoned(clock):
        raise QuantlibError(
            f"{service}: {record} is under way; wait for it, or stop it where it runs"
        )
    if digest is not None and record.digest != digest:
        raise InvalidInputError.one(
            str(service),
            f"{record} was abandoned",
            f"promote {short(record.digest)} again to go on with it, or `quantlib rollback` first",
        )


def take(service: Service, document: Document, notes: Document, record: Record) -> None:
    """Begins a promotion; of several who try at once, one succeeds.

    Args:
        service: The service.
        document: As it was read.
        notes: As they were read when it was found that nobody promotes.
        record: To be written.

    Raises:
        LostError: Somebody else was first.
    """
    annotations: dict[str, str | None] = {RECORD: json.dumps(asdict(record))}
    for _ in range(_ATTEMPTS):
        try:
            service.note(annotations | _ended(notes, record.uid), notes, document)
            return
        except ConflictError:
            before, notes = notes, service.notes()
            if record_of(notes) != record_of(before):
                raise LostError(f"{service}: {record_of(notes)} was first") from None
    raise QuantlibError(f"{service} changes all the time; nothing was done")


def before_last(notes: Document, uid: str) -> Document | None:
    """What the service was before the last promotion of it; None where that is not known.

    Args:
        notes: :meth:`quantlib.promotion.cluster.Service.notes`.
        uid: Of the object.

    Raises:
        InvalidInputError: The annotation is not as we write it.
    """
    text = _annotations(notes).get(BEFORE)
    if text is None or _ended(notes, uid):
        return None
    try:
        return parsed(text)
    except ValueError:
        raise InvalidInputError.one(
            f"annotation {BEFORE} of the Lease {notes['metadata']['name']}",
            f"holds no service that quantlib wrote: {text[:200]}",
        ) from None


def _ended(notes: Document, uid: str) -> dict[str, None]:
    """What is noted of another object of the same name, and is over with it."""
    owners = {each["uid"] for each in (notes.get("metadata") or {}).get("ownerReferences") or ()}
    return {} if not notes or uid in owners else {LAST: None, BEFORE: None}


def renew(service: Service, record: Record, step: str, clock: Clock) -> Record:
    """Writes what is being done, and that the holder is there.

    Raises:
        LostError: Somebody else holds the promotion.
    """
    renewed = replace(record, step=step, renewed=clock.stamp())
    annotations = {RECORD: json.dumps(asdict(renewed))}
    _while_held(service, record, clock, lambda notes: service.note(annotations, notes))
    return renewed


def write(
    service: Service,
    record: Record,
    change: Callable[[Document], Document],
    clock: Clock,
    route: str | None = None,
) -> Document:
    """Changes the service, only while the promotion is held.

    Args:
        service: The service.
        record: The promotion.
        change: What it makes of the object as it is found; of an HTTPRoute, where one is named.
        clock: To wait by.
        route: Name of an HTTPRoute to change in the service's place.

    Raises:
        LostError: Somebody else holds the promotion.
    """

    def changed(_: Document) -> Document:
        before = service.route(route) if route else service.get()
        after = change(before)
        return (
            service.change_route(route, before, after) if route else service.change(before, after)
        )

    return _while_held(service, record, clock, changed)


def finish(
    service: Service,
    record: Record,
    story: str,
    clock: Clock,
    also: Mapping[str, str | None] | None = None,
) -> None:
    """Ends a promotion, and says what came of it.

    Args:
        service: The service.
        record: The promotion.
        story: What came of it, in a sentence.
        clock: The time.
        also: Other annotations to set, such as what a rollback by hand goes back to from now on.

    Raises:
        LostError: Somebody else holds the promotion.
    """
    told = f"{clock.stamp()} {story}"[:1000]
    annotations = {RECORD: None, LAST: told} | dict(also or {})
    try:
        _while_held(service, record, clock, lambda notes: service.note(annotations, notes))
    except LostError:
        # Unless the change was made, and the answer was lost on its way.
        if _annotations(service.notes()).get(LAST) != told:
            raise


def _while_held(
    service: Service, record: Record, clock: Clock, change: Callable[[Document], Document]
) -> Document:
    deadline = clock.monotonic() + PATIENCE_SECONDS
    conflicts = 0
    while conflicts < _ATTEMPTS:
        try:
            notes = service.notes()
            held = record_of(notes)
            if held is None or held.holder != record.holder:
                raise LostError(f"{service}: {held or 'nobody'} holds it now; nothing more is done")
            return change(notes)
        except ConflictError:  # a controller has written its status
            conflicts += 1
        except UnreachableError:
            if clock.monotonic() > deadline:
                raise
            clock.sleep(_SECONDS_BETWEEN_TRIES)
    raise QuantlibError(f"{service} changes all the time")


def _annotations(notes: Document) -> dict[str, str]:
    return (notes.get("metadata") or {}).get("annotations") or {}
