"""The record of a promotion in progress: an annotation of a Lease, which one writer holds."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field, PlainSerializer

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.api import ConflictError, UnreachableError
from quantlib.promotion.cluster import Service
from quantlib.promotion.merging import Document, annotations_of
from quantlib.promotion.rollout import Clock, Rollout, Say
from quantlib.promotion.state import PREFIX, short

RECORD = PREFIX + "promotion"
LAST = PREFIX + "last-promotion"
BEFORE = PREFIX + "before"
STALE = timedelta(seconds=120)
"""A holder that has not written for so long is gone."""

PATIENCE_SECONDS = 15.0
"""How long a change is tried again while the API server does not answer."""

_LEAVING_SECONDS = 60.0
"""How long a canary may take to end."""

_Read = TypeVar("_Read")
_SECONDS_BETWEEN_TRIES = 0.5


class LostError(QuantlibError):
    """Somebody else holds the promotion now."""


def kept(given: Any) -> Document:
    """What is kept of an object to go back to it, from the object or as JSON; or ValueError."""
    document = json.loads(given) if isinstance(given, str) else given
    try:
        named = ("name", "namespace", "annotations")
        metadata = {k: v for k, v in document["metadata"].items() if k in named}
        fields = {name: document[name] for name in ("apiVersion", "kind")}
        return fields | {"spec": dict(document["spec"]), "metadata": metadata}
    except (AttributeError, KeyError, TypeError):
        raise ValueError("no object") from None


_Kept = Annotated[Document, BeforeValidator(kept), PlainSerializer(json.dumps)]


class PromotionRecord(BaseModel, frozen=True, extra="forbid"):
    """A promotion in progress.

    Attributes:
        holder: Who promotes: host, process and a random part.
        uid: Of the object that is changed; another one of its name is another service.
        began: When it was begun, which a promotion that goes on with it says again.
        renewed: When the holder last wrote.
        before: The object to go back to: what is :func:`kept` of it.
        route: The HTTPRoute to go back to, in the same way; None without one.
    """

    holder: str = Field(
        default_factory=lambda: f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
    )
    uid: str
    digest: str
    step: str
    began: str
    renewed: AwareDatetime
    before: _Kept
    route: _Kept | None = None

    def require_abandoned(self, service: Service, digest: str | None, clock: Clock) -> None:
        """Checks that it may be ended, or gone on with, with the checkpoint of a digest.

        Raises:
            QuantlibError: Its holder has written not long ago.
            InvalidInputError: It is of another checkpoint.
        """
        if clock.utc() - self.renewed <= STALE:
            raise QuantlibError(
                f"{service}: {self} is under way; wait for it, or stop it where it runs"
            )
        if digest not in (None, self.digest):
            remedy = f"promote {short(self.digest)} again to go on with it, or `quantlib rollback`"
            raise InvalidInputError.one(str(service), f"{self} was abandoned", f"{remedy} first")

    def __str__(self) -> str:
        return (
            f"the promotion of {short(self.digest)} by {self.holder} "
            f"(step {self.step}, last heard of {self.renewed.isoformat(timespec='seconds')})"
        )


def record_of(notes: Document, uid: str | None = None) -> PromotionRecord | None:
    """The promotion in progress, if there is one; InvalidInputError where it is not as we write it.

    That of another object of its name, by the uid, is over: that one is gone.
    """
    record = _parsed(notes, RECORD, "promotion", PromotionRecord.model_validate_json)
    return record if record and uid in (None, record.uid) else None


def before_last(notes: Document, uid: str) -> Document | None:
    """What the object of a uid was before the last promotion of it; None where nobody knows.

    InvalidInputError where that is not as we write it.
    """
    return None if _ended(notes, uid) else _parsed(notes, BEFORE, "service", kept)


def _parsed(notes: Document, name: str, what: str, read: Callable[[str], _Read]) -> _Read | None:
    if not (text := annotations_of(notes).get(name)):
        return None
    try:
        return read(text)
    except ValueError:
        raise InvalidInputError.one(
            f"annotation {name} of the Lease {notes['metadata']['name']}",
            f"holds no {what} that quantlib wrote: {text[:200]}",
            "look at what the service serves, and remove the annotation",
        ) from None


@dataclass
class Held:
    """A promotion that this process holds: nothing is written once somebody else does.

    All that writes raises :class:`LostError` then. ``record`` is as it was last written.
    """

    service: Service
    record: PromotionRecord
    rollout: Rollout
    say: Say

    def begin(self, document: Document, notes: Document) -> None:
        """Writes the record; of several who found the same in these notes, one succeeds."""

        def begin(notes: Document) -> Document:
            annotations = self._written() | _ended(notes, self.record.uid)
            return self.service.annotate_lease(annotations, notes, document)

        self._while_held(begin, record_of(notes))

    def renew(self, step: str) -> None:
        """Writes what is being done, and that the holder is there."""
        news = {"step": step, "renewed": self.rollout.clock.utc()}
        self.record = self.record.model_copy(update=news)
        self._while_held(lambda notes: self.service.annotate_lease(self._written(), notes))

    def write(self, change: Callable[[Document], Document], path: str | None = None) -> Document:
        """Changes the service as it is found, or the object at another path."""

        def changed(_: Document) -> Document:
            before = self.service.get(path)
            return self.service.change(before, change(before), path=path)

        return self._while_held(changed)

    def put_beside(self, wanted: Document) -> None:
        """Makes the object beside the service what is wanted; it goes when the service goes.

        Raises:
            InvalidInputError: There is one of its name that no promotion of this service made.
        """
        canary = self.service.canary
        owners = {"ownerReferences": [self.service.reference(self.record.uid)]}

        def put(_: Document) -> Document:
            found = canary.seen()
            if found is None:
                return canary.make(wanted | {"metadata": wanted["metadata"] | owners})
            if not self._is_mine(found):
                remedy = "remove it, or promote without --canary"
                raise InvalidInputError.one(str(canary), "somebody else has made it", remedy)
            if found["metadata"].get("deletionTimestamp"):
                raise ConflictError(f"{canary}: it is being deleted")
            return canary.change(found, found | {"spec": wanted["spec"]})

        self._while_held(put)

    def take_away(self) -> None:
        """Removes the object beside the service, and waits until it is gone.

        KServe ends a member of a group once no route of another leads to it any more
        (``finalizeGroupMembership`` of its ``router_group.go``): no request is lost with its pods.

        Raises:
            ConflictError: It is still there after a while.
        """
        canary = self.service.canary

        def remove(_: Document) -> Document:
            found = canary.seen() or {}
            if found and self._is_mine(found) and not found["metadata"].get("deletionTimestamp"):
                canary.remove()
            return found

        def gone() -> None:
            found = canary.seen()
            if found and self._is_mine(found):
                raise ConflictError(f"{canary}: it is asked to go, and does not")

        if self._while_held(remove):
            errors = (ConflictError, UnreachableError)
            self.rollout.clock.retry(gone, errors, _LEAVING_SECONDS, self.rollout.poll_seconds)

    def _is_mine(self, found: Document) -> bool:
        owners = found["metadata"].get("ownerReferences") or ()
        return self.record.uid in {owner["uid"] for owner in owners}

    def finish(self, story: str, also: Mapping[str, str | None]) -> None:
        """Ends it, and writes what came of it, with other annotations."""
        told = f"{self.rollout.clock.stamp()} {story}"[:1000]
        annotations = {RECORD: None, LAST: told, **also}
        try:
            self._while_held(lambda notes: self.service.annotate_lease(annotations, notes))
        except LostError:
            # Unless the change was made, and the answer was lost on its way.
            if annotations_of(self.service.lease()).get(LAST) != told:
                raise

    def announce(
        self, document: Document, reason: str, message: str, *, warning: bool = False
    ) -> None:
        """Says it here and in an event, in a line; what cannot be told there hinders nothing."""
        line = " ".join(message.split())
        self.say(line)
        try:
            self.service.create_event(document, reason, line, warning=warning)
        except QuantlibError as error:
            self.say(f"no event was left: {error}")

    def _written(self) -> dict[str, str | None]:
        return {RECORD: self.record.model_dump_json()}

    def _while_held(
        self, change: Callable[[Document], Document], *before: PromotionRecord | None
    ) -> Document:
        """Changes something while this process holds the promotion, or nobody since ``before``.

        It is tried again where no answer came, or a controller wrote its status meanwhile.
        """

        def once() -> Document:
            notes = self.service.lease()
            held = record_of(notes)
            is_mine = held is not None and held.holder == self.record.holder
            if not is_mine and held not in before:
                holder = held or "nobody"
                raise LostError(f"{self.service}: {holder} holds it now; nothing more is done")
            return change(notes)

        errors = (ConflictError, UnreachableError)
        return self.rollout.clock.retry(once, errors, PATIENCE_SECONDS, _SECONDS_BETWEEN_TRIES)


def _ended(notes: Document, uid: str) -> dict[str, None]:
    """What is noted of another object of the same name, and is over with it."""
    owners = {each["uid"] for each in (notes.get("metadata") or {}).get("ownerReferences") or ()}
    return {} if not notes or uid in owners else {LAST: None, BEFORE: None}
