"""How a workflow of Argo ended, from what Argo tells its exit handler.

    python -m quantlib.telemetry.argo STATUS FAILURES MODEL

It prints that in a line, and tells the webhook where the environment names one.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

from quantlib.runtime.log import RUN_VARIABLE
from quantlib.telemetry.notices import Notice, notify

_SUCCEEDED = "Succeeded"
_EXIT_CODE = re.compile(r"\(exit code (\d+)\)")


def main() -> None:
    """Reads the arguments, prints and tells."""
    status, failures, model = sys.argv[1:]
    print(status, failures, flush=True)
    notify(notice_of(status, failures, model, os.environ.get(RUN_VARIABLE, "")))


def notice_of(status: str, failures: str, model: str, run: str) -> Notice:
    """The notice of the end of a workflow.

    Args:
        status: ``workflow.status``.
        failures: ``workflow.failures``: JSON, in quotes as Go writes them; nodes that failed, with
            the pods among them first to last. A message holds the exit code, and behind it what
            the step wrote to its termination log.
        model: What was to be quantized.
        run: The workflow's name.
    """
    if status == _SUCCEEDED:
        return Notice(run, model, "publish", 0, "the workflow succeeded")
    pods = [node for node in _nodes(failures) if node.get("podName")]
    first = min(pods, key=lambda node: str(node.get("finishedAt")), default=None)
    if first is None:
        return Notice(run, model, "", None, f"the workflow ended as {status}: {failures}")
    message = str(first.get("message", ""))
    code = _EXIT_CODE.search(message)
    step = str(first.get("templateName") or first.get("displayName"))
    return Notice(run, model, step, int(code[1]) if code else None, message)


def _nodes(failures: str) -> list[dict[str, Any]]:
    try:
        parsed = json.loads(failures)
        parsed = json.loads(parsed) if isinstance(parsed, str) else parsed
    except ValueError:
        return []
    return [node for node in parsed or [] if isinstance(node, dict)]


if __name__ == "__main__":
    main()
