"""What Prometheus sees of a watcher: its looks, and the steps of what was published last."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.publishing.receipts import read_receipts
from quantlib.report.manifest import RECEIPTS_NAME
from quantlib.store import open_store, run_facts
from quantlib.telemetry.figures import Figures, Labels, StepSamples, figures_of_work, joined
from quantlib.watching.looks import Look, Outcome

Samples = tuple[tuple[Labels, Figures], ...]


class WatcherFigures(Collector):
    """Figures of one watcher.

    Args:
        store: Where the steps keep their work.
    """

    def __init__(self, store: str) -> None:
        self.registry = CollectorRegistry()
        self._store = store
        self._published: dict[str, tuple[str, Samples]] = {}
        self._looks = Counter(
            "quantlib_watch_looks",
            "Looks at a recipe, by what became of it.",
            ["recipe", "outcome"],
            registry=self.registry,
        )
        self._duration = Summary(
            "quantlib_watch_look_duration_seconds",
            "How long a look took, with the run that it waited for.",
            ["recipe"],
            registry=self.registry,
        )
        self._ended = Gauge(
            "quantlib_watch_last_look_timestamp_seconds",
            "When the last look ended, in seconds since 1970.",
            ["recipe"],
            registry=self.registry,
        )
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Figures of the steps, for the registry."""
        samples = [sample for _, found in list(self._published.values()) for sample in found]
        return StepSamples(tuple(samples)).collect()

    def serve(self, port: int) -> None:
        """Answers Prometheus from now on, on every address of this machine.

        Raises:
            InvalidInputError: The port is taken.
        """
        try:
            start_http_server(port, registry=self.registry)
        except OSError as error:
            raise InvalidInputError.one(
                f"--metrics-port {port}", error.strerror or str(error), "choose another"
            ) from None

    def take(self, look: Look, seconds: float) -> None:
        """Takes a look into account."""
        recipe = Path(look.recipe).stem
        self._looks.labels(recipe, look.outcome.value.replace(" ", "_")).inc()
        self._duration.labels(recipe).observe(seconds)
        self._ended.labels(recipe).set_to_current_time()
        if look.outcome not in (Outcome.UP_TO_DATE, Outcome.DONE):
            return
        if self._published.get(recipe, ("",))[0] == look.detail:
            return
        self._published[recipe] = look.detail, ()
        try:
            self._published[recipe] = look.detail, self._samples(recipe, look.detail)
        except (QuantlibError, OSError, ValueError, TypeError) as error:
            line = f"warning: no figures of {look.detail}: {' '.join(str(error).split())}"
            print(line, file=sys.stderr, flush=True)

    def _samples(self, recipe: str, address: str) -> Samples:
        """Figures of the steps that a published checkpoint rests on; of those in the store."""
        published, store = open_store(address), open_store(self._store)
        data = bytes(published.read(RECEIPTS_NAME))
        return joined(
            (
                {
                    "recipe": recipe,
                    "step": receipt.step,
                    "iteration": str(receipt.parameters.get("range", "")),
                },
                figures_of_work(receipt, run_facts(store, receipt)),
            )
            for receipt in read_receipts(data, published.full_address(RECEIPTS_NAME))
        )
