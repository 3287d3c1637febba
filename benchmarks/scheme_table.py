"""Figures of schemes, and the table that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

NAMES = {
    "minmax": "rounding",
    "gptq": "GPTQ",
    "smoothed": "SmoothQuant, GPTQ",
    "awq": "AWQ",
    "tuning": "tuning",
}


@dataclass(frozen=True)
class Cell:
    """One checkpoint.

    Attributes:
        model: By its name in the benchmarks.
        scheme: Of all its linears.
        tool: What makes it.
        method: How.
        seed: Of the calibration windows.
    """

    model: str
    scheme: str
    tool: str
    method: str
    seed: int = 0

    @property
    def slug(self) -> str:
        """A file name."""
        return f"{self.model}-{self.scheme}-{self.tool}-{self.method}-{self.seed}"


@dataclass(frozen=True)
class Measured:
    """What was found of a checkpoint; None where it was not made, and where nothing is stored.

    Attributes:
        cell: Which one.
        user_seconds: Of all processes that made it.
        peak_mib: Of the largest of them.
        bits: Per weight of quantized linears, scales counted.
        perplexity: On the held-out text.
        original_perplexity: Of the model that it was made of.
        kl: Mean KL divergence from that.
        kl_error: Its standard error.
        top1: Share of positions whose most likely token is the same.
        failure: What was said where it was not made.
    """

    cell: Cell
    user_seconds: float | None = None
    peak_mib: int | None = None
    bits: float | None = None
    perplexity: float | None = None
    original_perplexity: float | None = None
    kl: float | None = None
    kl_error: float | None = None
    top1: float | None = None
    failure: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measured:
        """The inverse of :func:`dataclasses.asdict`."""
        return cls(**data | {"cell": Cell(**data["cell"])})

    @property
    def words(self) -> str:
        """A line for who waits."""
        if self.failure:
            return f"failed: {self.failure}"
        return f"KL {self.kl:.4f}, perplexity {self.perplexity:.2f}, {self.user_seconds} s"


HEADER = (
    "| scheme | bits | tool | method | mean KL | perplexity | top-1 | user CPU s | peak MiB |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)


def markdown(rows: Iterable[Measured]) -> str:
    """A table for each model, with the means over seeds; schemes in the order of their names."""
    by_model: dict[str, dict[tuple[str, str, str], list[Measured]]] = {}
    for row in rows:
        if not row.failure:
            cell = row.cell
            found = by_model.setdefault(cell.model, {})
            found.setdefault((cell.scheme, cell.tool, cell.method), []).append(row)
    return "\n".join(_of_model(model, found) for model, found in sorted(by_model.items()))


def _of_model(model: str, found: Mapping[tuple[str, str, str], list[Measured]]) -> str:
    lines, last = [], ""
    tools = sorted({tool for _, tool, _ in found}, key=lambda tool: (tool != "quantlib", tool))
    order = list(NAMES)
    keys = sorted(found, key=lambda key: (key[0], tools.index(key[1]), order.index(key[2])))
    for key in keys:
        scheme, tool, method = key
        seeds = found[key]
        bits = _mean(seeds, "bits")
        first = f"`{scheme}`" if scheme != last else ""
        last = scheme
        columns = [
            first,
            "" if bits is None else f"{bits:.2f}",
            tool,
            NAMES[method],
            f"{_mean(seeds, 'kl'):.4f}",
            f"{_mean(seeds, 'perplexity'):.2f}",
            f"{_mean(seeds, 'top1'):.3f}",
            f"{_mean(seeds, 'user_seconds'):.0f}",
            f"{_mean(seeds, 'peak_mib'):.0f}",
        ]
        lines.append(f"| {' | '.join(columns)} |\n")
    original = next(iter(found.values()))[0].original_perplexity
    return f"{model}, perplexity {original:.2f}:\n\n{HEADER}{''.join(lines)}"


def _mean(rows: Iterable[Measured], name: str) -> float | None:
    values = [getattr(row, name) for row in rows]
    return None if None in values else fmean(values)
