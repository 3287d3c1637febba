"""Pushes figures to a Pushgateway of Prometheus, which keeps those of processes that end."""

from __future__ import annotations

import os
import sys
from http.client import HTTPException

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import push_to_gateway

from quantlib.telemetry.figures import Figures, Labels, StepSamples
from quantlib.telemetry.settings import GATEWAY_VARIABLE

_JOB = "quantlib"
_SECONDS = 5.0


def push_figures(labels: Labels, figures: Figures) -> None:
    """Puts figures in the place of those with the same labels; says in a line why it cannot.

    Args:
        labels: What they are of: the gateway's grouping key. Those that are empty are left out.
        figures: By name.
    """
    gateway = os.environ.get(GATEWAY_VARIABLE)
    if not gateway:
        return
    registry = CollectorRegistry()
    registry.register(StepSamples((({}, figures),)))
    key = {name: value for name, value in labels.items() if value}
    try:
        push_to_gateway(gateway, _JOB, registry, grouping_key=key, timeout=_SECONDS)
    except (OSError, HTTPException, ValueError) as error:
        line = f"warning: {GATEWAY_VARIABLE} {gateway}: no figures were pushed: {error}"
        print(line, file=sys.stderr, flush=True)
