"""Tells a webhook how a run ended: one POST of JSON, whose ``text`` chats show."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from quantlib.telemetry.settings import (
    LINK_VARIABLE,
    NOTIFY_PASSED_VARIABLE,
    NOTIFY_VARIABLE,
)
from quantlib.verdicts import REFUSED_EXIT_CODES

_SECONDS = 10.0
_LONGEST = 1500
"""Characters of a reason at most."""


@dataclass(frozen=True)
class Notice:
    """How a run ended.

    Attributes:
        run: Its id.
        model: What was to be quantized; empty where that is not known.
        step: The step that ended it.
        exit_code: Of that step; 3, 4 or 5 where the gate refused the checkpoint; None where not
            known.
        reason: Why, or where the checkpoint is.
    """

    run: str
    model: str
    step: str
    exit_code: int | None
    reason: str

    @property
    def outcome(self) -> str:
        """passed, refused or failed."""
        if self.exit_code in REFUSED_EXIT_CODES:
            return "refused"
        return "passed" if self.exit_code == 0 else "failed"

    def to_json(self) -> dict[str, Any]:
        """What is posted."""
        link = os.environ.get(LINK_VARIABLE, "").replace("{run}", self.run)
        reason = " ".join(self.reason.split())[:_LONGEST]
        said = {"run": self.run, "outcome": self.outcome, **asdict(self), "reason": reason}
        what = f"Quantization of {self.model or 'a model'} {self.outcome}"
        where = f" at step {self.step}" if self.exit_code else ""
        text = "\n".join(filter(None, (f"{what}{where}: {reason}", link or f"run {self.run}")))
        return {"text": text, **said, "link": link}


def notify(notice: Notice) -> None:
    """Posts a notice where the environment says so; says in a line why it cannot.

    That a run passed is told only where ``QUANTLIB_NOTIFY_PASSED=yes``.
    """
    url = os.environ.get(NOTIFY_VARIABLE)
    if not url or (notice.outcome == "passed" and os.environ.get(NOTIFY_PASSED_VARIABLE) != "yes"):
        return
    headers = {"Content-Type": "application/json"}
    request = Request(url, json.dumps(notice.to_json()).encode(), headers, method="POST")
    try:
        with urlopen(request, timeout=_SECONDS):
            return
    except HTTPError as error:
        what = f"answers {error.code}"
    except (OSError, HTTPException, ValueError) as error:
        # What the system says names at most the host.
        what = f"cannot be reached ({type(error).__name__})"
    host = urlsplit(url).hostname  # the rest is a secret
    line = f"warning: {NOTIFY_VARIABLE}: {host} {what}; nobody was told how the run ended"
    print(line, file=sys.stderr, flush=True)
