"""The environment variables that say who is told what."""

from __future__ import annotations

import os
from collections.abc import Iterator

from quantlib.errors import Problem
from quantlib.runtime.log import log_problems
from quantlib.runtime.urls import link_fault, url_fault

GATEWAY_VARIABLE = "QUANTLIB_PUSHGATEWAY"
NOTIFY_VARIABLE = "QUANTLIB_NOTIFY_URL"
"""The address of a webhook: who knows it may post there, so it is in no message."""

MODEL_REGISTRY_VARIABLE = "QUANTLIB_MODEL_REGISTRY"
MLFLOW_VARIABLE = "QUANTLIB_MLFLOW"
NOTIFY_PASSED_VARIABLE = "QUANTLIB_NOTIFY_PASSED"
LINK_VARIABLE = "QUANTLIB_RUN_LINK"
"""The address of a run's page, with ``{run}`` in the place of its id."""

_CHOICES = ("yes", "no")
_SERVERS = (GATEWAY_VARIABLE, NOTIFY_VARIABLE, MODEL_REGISTRY_VARIABLE, MLFLOW_VARIABLE)


def environment_problems() -> list[Problem]:
    """What is wrong with these variables, and with that of the log."""
    return [*log_problems(), *_problems()]


def _problems() -> Iterator[Problem]:
    for name, fault_of in (*((name, url_fault) for name in _SERVERS), (LINK_VARIABLE, link_fault)):
        if (url := os.environ.get(name)) and (fault := fault_of(url)):
            yield Problem(name, fault)
    passed = os.environ.get(NOTIFY_PASSED_VARIABLE) or _CHOICES[1]
    if passed not in _CHOICES:
        yield Problem(NOTIFY_PASSED_VARIABLE, f"is {passed!r}, neither {' nor '.join(_CHOICES)}")
