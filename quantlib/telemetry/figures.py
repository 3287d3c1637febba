"""Figures of steps, by the names that Prometheus has them under."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from quantlib.runtime.usage import gpu_peak_bytes, peak_bytes, usage
from quantlib.store import Receipt

MEANINGS = {
    "quantlib_step_duration_seconds": "How long the step took.",
    "quantlib_step_exit_code": "What the step's process exited with.",
    "quantlib_step_reused": "1 where the step's work was in the store, 0 where it was done.",
    "quantlib_step_read_bytes": "Contents that the step read from the store.",
    "quantlib_step_written_bytes": "Contents that the step wrote to the store.",
    "quantlib_step_peak_memory_bytes": "Largest memory of a process of the step.",
    "quantlib_step_gpu_peak_memory_bytes": "Largest memory of torch on one GPU; not vLLM's.",
    "quantlib_step_gpu_seconds": "Time of the step's work on CUDA devices, times their number.",
    "quantlib_step_ended_timestamp_seconds": "When the step ended, in seconds since 1970.",
    "quantlib_verdict_passed": "1 where the gate lets the checkpoint pass, 0 where not.",
    "quantlib_verdict_perplexity_original": "Perplexity of the original model.",
    "quantlib_verdict_perplexity_quantized": "Perplexity of the checkpoint.",
    "quantlib_verdict_kl_mean_nats": "Mean KL divergence of the checkpoint from the original.",
    "quantlib_verdict_top1_agreement_ratio": "Share of tokens that both models take for likeliest.",
}
"""What each figure is. All are gauges: of the last time that a step ran."""

_FACTS = {
    "quantlib_verdict_perplexity_original": "perplexity_original",
    "quantlib_verdict_perplexity_quantized": "perplexity_quantized",
    "quantlib_verdict_kl_mean_nats": "kl_mean",
    "quantlib_verdict_top1_agreement_ratio": "top1_agreement",
}
_LARGEST = ("peak_memory_bytes", "timestamp_seconds")

Figures = Mapping[str, float]
Labels = Mapping[str, str]


@dataclass(frozen=True, eq=False)  # a registry keeps it by identity
class StepSamples(Collector):
    """Figures of steps, as a registry of Prometheus takes them.

    Attributes:
        samples: Labels and figures of each; no two with the same labels, and the same names of
            labels in all.
    """

    samples: tuple[tuple[Labels, Figures], ...]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The figures, one family a name."""
        for name, meaning in MEANINGS.items():
            found = [(labels, each[name]) for labels, each in self.samples if name in each]
            if found:
                family = GaugeMetricFamily(name, meaning, labels=list(found[0][0]))
                for labels, value in found:
                    family.add_metric(list(labels.values()), value)
                yield family


def figures_of_process(
    seconds: float, ended: float, exit_code: int, receipts: Iterable[Receipt], *, reused: bool
) -> dict[str, float]:
    """Figures of the step that this process is.

    Args:
        seconds: How long it ran.
        ended: When it ended, in seconds since 1970.
        exit_code: What it is about to exit with.
        receipts: What it delivers.
        reused: Whether all of that was in the store.
    """
    figures = {
        "quantlib_step_duration_seconds": seconds,
        "quantlib_step_exit_code": exit_code,
        "quantlib_step_reused": float(reused),
        "quantlib_step_read_bytes": usage.read_bytes,
        "quantlib_step_written_bytes": usage.written_bytes,
        "quantlib_step_peak_memory_bytes": max(peak_bytes(), usage.peak_bytes),
        "quantlib_step_gpu_seconds": usage.gpu_seconds,
        "quantlib_step_ended_timestamp_seconds": ended,
    }
    if (peak := gpu_peak_bytes()) is not None:
        figures["quantlib_step_gpu_peak_memory_bytes"] = peak
    for receipt in receipts:
        figures |= verdict_figures(receipt)
    return figures


def figures_of_work(receipt: Receipt, run: Mapping[str, Any]) -> dict[str, float]:
    """Figures of the work that committed a step.

    Args:
        receipt: Of the step.
        run: What was noted of that run, as :func:`quantlib.store.run_facts` reads it.
    """
    found = {
        "quantlib_step_duration_seconds": run.get("seconds"),
        "quantlib_step_read_bytes": run.get("read_bytes"),
        "quantlib_step_written_bytes": run.get("written_bytes"),
        "quantlib_step_peak_memory_bytes": _bytes(run.get("peak_mib")),
        "quantlib_step_gpu_peak_memory_bytes": _bytes(run.get("gpu_peak_mib")),
        "quantlib_step_gpu_seconds": run.get("gpu_seconds"),
        "quantlib_step_ended_timestamp_seconds": _timestamp(run.get("ended")),
    }
    known = {name: float(value) for name, value in found.items() if value is not None}
    return known | verdict_figures(receipt)


def verdict_figures(receipt: Receipt) -> dict[str, float]:
    """What a checkpoint was judged by; nothing of any other step's receipt."""
    if receipt.step != "validate":
        return {}
    figures = {"quantlib_verdict_passed": float(receipt.facts.get("verdict") == "passed")}
    for name, fact in _FACTS.items():
        if (value := receipt.facts.get(fact)) is not None:
            figures[name] = float(value)
    return figures


def joined(samples: Iterable[tuple[Labels, Figures]]) -> tuple[tuple[Labels, Figures], ...]:
    """Samples with the same labels as one: the sum, of peaks and times the largest."""
    found: dict[tuple[str, ...], tuple[Labels, dict[str, float]]] = {}
    for labels, figures in samples:
        _, together = found.setdefault(tuple(labels.values()), (labels, {}))
        for name, value in figures.items():
            if name not in together:
                together[name] = value
            elif name.endswith(_LARGEST):
                together[name] = max(together[name], value)
            else:
                together[name] += value
    return tuple(found.values())


def _bytes(mebibytes: float | None) -> float | None:
    return None if mebibytes is None else mebibytes * 2**20


def _timestamp(ended: str | None) -> float | None:
    return None if ended is None else datetime.fromisoformat(ended).timestamp()
