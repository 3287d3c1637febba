"""How a service is to go over, and the clock that it goes by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

SETTLE_SECONDS = 30.0
"""Where a status does not say which generation it is of, it has to stay ready for so long."""

Say = Callable[[str], None]


class Clock:
    """The machine's clock. Tests have one of their own, which waits for nobody."""

    def monotonic(self) -> float:
        """Seconds since some moment, which never go back."""
        return time.monotonic()

    def utc(self) -> datetime:
        """The time of day."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)

    def stamp(self) -> str:
        """The time of day, as annotations hold it."""
        return self.utc().isoformat(timespec="seconds")


@dataclass(frozen=True)
class Rollout:
    """How a service goes over.

    Attributes:
        percents: Of the traffic, for the canary; none to go over at once.
        route: An HTTPRoute that gives the canary its share; None for what the cluster does itself.
        in_place: Whether new pods replace those that serve without standing beside them first.
        url: Where the service answers; None for what its status says.
        canary_url: Where the new checkpoint alone answers while it is beside the other.
        verify_on_start: Whether pods verify their copy; None for where the cluster can.
        timeout: Seconds that each step gets to be ready.
        restore_seconds: How long to try to restore while the API server does not answer.
    """

    percents: tuple[int, ...] = ()
    route: str | None = None
    in_place: bool = False
    url: str | None = None
    canary_url: str | None = None
    verify_on_start: bool | None = None
    timeout: float = 1800.0
    restore_seconds: float = 120.0
    poll_seconds: float = 2.0
    clock: Clock = Clock()  # noqa: RUF009 (it has no state)
