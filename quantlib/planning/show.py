"""An estimate as tables, for a terminal and for the page of a run."""

from __future__ import annotations

from collections.abc import Iterator

from quantlib.planning.estimate import RangeEstimate, RunEstimate
from quantlib.planning.hardware import GIB
from quantlib.planning.memory import quantity
from quantlib.report.text import duration, markdown_list, markdown_table, plural

_SHOWN_RANGES = (1, 2, 4, 8, 16, 32, 64)


NEEDS_HEADER = ("step", "host memory", "GPU memory", "GPUs", "CPUs", "memory limit")


def needs_rows(estimate: RunEstimate) -> Iterator[tuple[str, ...]]:
    """The rows below :data:`NEEDS_HEADER`; memory is peaks, that of GPUs of each one."""
    for step, needs in estimate.needs.items():
        memory = needs.memory
        device = _gib(memory.device) if needs.gpus else "-"
        gpus = str(needs.gpus) if needs.gpus else "-"
        yield step, _gib(memory.host), device, gpus, str(needs.cpus), quantity(memory.host)


def range_rows(estimate: RunEstimate) -> Iterator[tuple[str, ...]]:
    """Ranges, seconds of calibrate and of the longest range, makespan, device hours, a mark."""
    chosen = estimate.chosen.ranges
    shown = {*_SHOWN_RANGES, chosen, len(estimate.options)}
    for option in estimate.options:
        if option.ranges in shown:
            yield (
                str(option.ranges),
                duration(option.steps["calibrate"]),
                duration(option.steps["quantize"]),
                duration(option.makespan),
                f"{option.device_seconds / 3600:.2f}",
                "<-" if option.ranges == chosen else "",
            )


def step_rows(option: RangeEstimate) -> Iterator[tuple[str, str]]:
    """Steps and their times."""
    for step, seconds in option.steps.items():
        yield step, duration(seconds)


def closing_lines(estimate: RunEstimate) -> Iterator[str]:
    """What a run takes of the scratch disk and of the store, and how the original is judged."""
    yield f"scratch disk of a step: {estimate.scratch_bytes / 1e9:.2f} GB"
    yield f"store: {estimate.store_bytes / 1e9:.2f} GB"
    if estimate.needs["validate"].streams:
        yield (
            "the original is judged block by block, by transformers' modules: vLLM holds the "
            "quantized model alone"
        )


def markdown(estimate: RunEstimate) -> str:
    """The estimate for the page of a run."""
    chosen = estimate.chosen
    lines = [
        f"# Plan: {plural(chosen.ranges, 'range')} on {estimate.hardware.name}",
        "",
        f"{estimate.tokens} calibration tokens; {estimate.parallel} ranges at the same time. "
        "Times are estimates.",
        "",
        *markdown_table(NEEDS_HEADER, needs_rows(estimate)),
        *markdown_list(step_rows(chosen)),
        *markdown_table(
            ("ranges", "calibrate", "longest range", "whole run", "device hours", ""),
            range_rows(estimate),
        ),
        *closing_lines(estimate),
    ]
    return "\n".join(lines) + "\n"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
