"""The record of a promotion in progress: an annotation of a Lease, which one writer holds."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.clock import Clock
from quantlib.promotion.cluster import ConflictError, Service, UnreachableError
from quantlib.promotion.kinds import Document
from quantlib.promotion.published import short
from quantlib.promotion.state import PREFIX, State

RECORD = PREFIX + "promotion"
LAST = PREFIX + "last-promotion"
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
        digest: What is promoted.
        step: What is being done.
        renewed: When the holder last wrote.
        previous: The state to go back to, as JSON.
    """

    holder: str
    digest: str
    step: str
    renewed: str
    previous: str

    def abandoned(self, clock: Clock) -> bool:
        """Whether its holder has not written for long."""
        return clock.utc() - datetime.fromisoformat(self.renewed) > STALE

    @property
    def state(self) -> State:
        """The state to go back to."""
        return State.from_json(self.previous)

    def __str__(self) -> str:
        return (
            f"the promotion of {short(self.digest)} by {self.holder} "
            f"(step {self.step}, last heard of {self.renewed})"
        )


def new_holder() -> str:
    """A name for this process, unlike any other's."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"


def record_of(notes: Document) -> Record | None:
    """The promotion in progress, if there is one.

    Args:
        notes: :meth:`quantlib.promotion.cluster.Service.notes`.

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
        State.from_json(record.previous)
    except (ValueError, TypeError, InvalidInputError):
        raise InvalidInputError.one(
            f"annotation {RECORD} of the Lease {notes['metadata']['name']}",
            f"holds no promotion that quantlib wrote: {text[:200]}",
            "look at what the service serves, and remove the annotation",
        ) from None
    return record


def take(service: Service, notes: Document, record: Record) -> None:
    """Begins a promotion; of several who try at once, one succeeds.

    Args:
        service: The service.
        notes: As they were read when it was found that nobody promotes.
        record: To be written.

    Raises:
        LostError: Somebody else was first.
    """
    for _ in range(_ATTEMPTS):
        try:
            service.note({RECORD: json.dumps(asdict(record))}, notes)
            return
        except ConflictError:
            before, notes = notes, service.notes()
            if record_of(notes) != record_of(before):
                raise LostError(f"{service}: {record_of(notes)} was first") from None
    raise QuantlibError(f"{service} changes all the time; nothing was done")


def renew(service: Service, record: Record, step: str, clock: Clock) -> Record:
    """Writes what is being done, and that the holder is there.

    Raises:
        LostError: Somebody else holds the promotion.
    """
    renewed = replace(record, step=step, renewed=clock.stamp())
    annotations = {RECORD: json.dumps(asdict(renewed))}
    _while_held(service, record, clock, lambda notes: service.note(annotations, notes))
    return renewed


def apply(service: Service, record: Record, patch: Document, clock: Clock) -> Document:
    """Applies a patch, only while the promotion is held.

    Raises:
        LostError: Somebody else holds the promotion.
    """

    def change(_: Document) -> Document:
        return service.apply(patch, service.get()["metadata"]["resourceVersion"])

    return _while_held(service, record, clock, change)


def finish(service: Service, record: Record, story: str, clock: Clock) -> None:
    """Ends a promotion, and says what came of it.

    Raises:
        LostError: Somebody else holds the promotion.
    """
    told = f"{clock.stamp()} {story}"[:1000]
    annotations = {RECORD: None, LAST: told}
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
