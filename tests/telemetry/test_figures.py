"""Figures of steps, read by Prometheus's own parser."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parsed

from quantlib.store import Receipt
from quantlib.telemetry.figures import MEANINGS, StepSamples, figures_of_work, joined

KEY = "a" * 64
RUN = {
    "seconds": 41.5,
    "peak_mib": 790,
    "ended": "1970-01-02T00:00:00+00:00",
    "read_bytes": 1000,
    "written_bytes": 10,
    "gpu_seconds": 83.0,
    "gpu_peak_mib": 2,
}


def receipt_of(step: str, **facts: object) -> Receipt:
    return Receipt(step=step, key=KEY, code={}, parameters={}, inputs={}, facts=facts, files={})


def test_names_follow_the_conventions_of_prometheus() -> None:
    units = ("_seconds", "_bytes", "_code", "_reused", "_passed", "_nats", "_ratio")
    plain = ("_perplexity_original", "_perplexity_quantized")
    assert all(name.startswith("quantlib_") for name in MEANINGS)
    assert all(name.endswith(units + plain) for name in MEANINGS)


def test_figures_of_a_run_that_was_noted() -> None:
    assert figures_of_work(receipt_of("quantize"), RUN) == {
        "quantlib_step_duration_seconds": 41.5,
        "quantlib_step_read_bytes": 1000,
        "quantlib_step_written_bytes": 10,
        "quantlib_step_peak_memory_bytes": 790 * 2**20,
        "quantlib_step_gpu_peak_memory_bytes": 2 * 2**20,
        "quantlib_step_gpu_seconds": 83.0,
        "quantlib_step_ended_timestamp_seconds": 86400.0,
    }
    assert figures_of_work(receipt_of("quantize"), {}) == {}  # its run.json is gone


@pytest.mark.parametrize(("verdict", "passed"), [("passed", 1.0), ("regression", 0.0)])
def test_figures_of_a_verdict(verdict: str, passed: float) -> None:
    facts = {"perplexity_original": 10.0, "perplexity_quantized": None, "kl_mean": 0.1}
    found = figures_of_work(receipt_of("validate", verdict=verdict, **facts), {})
    assert found == {
        "quantlib_verdict_passed": passed,
        "quantlib_verdict_perplexity_original": 10.0,
        "quantlib_verdict_kl_mean_nats": 0.1,
    }


def test_a_registry_shows_them_by_labels() -> None:
    def labels(step: str, iteration: str = "") -> dict[str, str]:
        return {"step": step, "iteration": iteration}

    samples = joined(
        [
            (labels("text"), {"quantlib_step_duration_seconds": 1.0}),
            (labels("quantize", "0:8"), {"quantlib_step_duration_seconds": 4.0}),
            (labels("quantize", "8:16"), {"quantlib_step_duration_seconds": 5.0}),
            (
                labels("text"),
                {"quantlib_step_duration_seconds": 2.0, "quantlib_step_peak_memory_bytes": 7.0},
            ),
            (labels("text"), {"quantlib_step_peak_memory_bytes": 6.0}),
        ]
    )
    registry = CollectorRegistry()
    registry.register(StepSamples(samples))
    families = {family.name: family for family in parsed(generate_latest(registry).decode())}
    assert {family.type for family in families.values()} == {"gauge"}
    found = {
        (name, sample.labels["step"], sample.labels["iteration"]): sample.value
        for name, family in families.items()
        for sample in family.samples
    }
    assert found == {
        ("quantlib_step_duration_seconds", "text", ""): 3.0,
        ("quantlib_step_duration_seconds", "quantize", "0:8"): 4.0,
        ("quantlib_step_duration_seconds", "quantize", "8:16"): 5.0,
        ("quantlib_step_peak_memory_bytes", "text", ""): 7.0,
    }
