"""Numbers as a reader wants them; shared by the page and the model card."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantlib.report.evaluation import Evaluation

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_DIGEST = re.compile(r"\b(?:sha256:)?([0-9a-f]{12})[0-9a-f]{52}\b")
ABSENT = "\N{EN DASH}"


def significant(value: float | None, digits: int = 4) -> str:
    """``digits`` significant digits, trailing zeros kept, and powers of ten: 16.77, 0.1060."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return _not_finite(value)
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -5 < power < 5:
        return f"{value:.{max(digits - 1 - power, 0)}f}"
    return f"{mantissa} \N{MULTIPLICATION SIGN} {power_of_ten(power)}"


def power_of_ten(exponent: int) -> str:
    """10⁻⁵ and the like."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def short(value: float | None) -> str:
    """As few digits as it takes: 0.01, 0.1."""
    return ABSENT if value is None else f"{value:g}"


def percent(value: float | None) -> str:
    """A share as a percentage: 83.8%, and 0.01% where one digit would make it nothing."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return _not_finite(value)
    small = value and abs(value) < 0.0005
    text = f"{100 * value:.1g}%" if small else f"{100 * value:.1f}%"
    return text.replace("-", "\N{MINUS SIGN}")


def change(value: float | None) -> str:
    """A relative change, signed: +9.0%."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return _not_finite(value)
    return f"{100 * value:+.1f}%".replace("-", "\N{MINUS SIGN}")


def counted(value: object) -> str:
    """A value as it stands; a mapping of names to counts in words: 211 F32, 61 Q4_K."""
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return str(value)


def integer(value: int) -> str:
    """Digits in groups of three: 20,480."""
    return f"{value:,}"


def size(value: int) -> str:
    """Bytes in the largest binary unit that leaves a number of at least 1: 256.6 MiB."""
    number, units = float(value), ("bytes", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if number < 1024 or unit == units[-1]:
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"


def mebibytes(value: float | None) -> str:
    """An amount given in MiB."""
    return ABSENT if value is None else size(round(value * 1024**2))


def duration(seconds: float | None) -> str:
    """61.2 s, 4 min 12 s, 1 h 5 min."""
    if seconds is None:
        return ABSENT
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def plural(number: int, noun: str) -> str:
    """1 block, 30 blocks."""
    return f"{integer(number)} {noun}{'' if number == 1 else 's'}"


def figures_line(
    original: float | None,
    quantized: float | None,
    increase: float | None,
    kl: float | None,
    kl_error: float | None,
    agreement: float | None,
) -> str:
    """What was measured, in a line; figures that are no finite numbers may be None."""
    error = significant(kl_error, 2)
    return (
        f"perplexity {significant(original)} -> {significant(quantized)} ({change(increase)}), "
        f"mean KL divergence {significant(kl)} \N{PLUS-MINUS SIGN} {error} nats, "
        f"same most likely token {percent(agreement)}"
    )


FIGURES = (
    "perplexity_original",
    "perplexity_quantized",
    "perplexity_increase",
    "kl_mean",
    "kl_standard_error",
    "top1_agreement",
)
"""What is measured of a checkpoint, by the names that steps and commands give it."""


def figures_of(evaluation: Evaluation) -> dict[str, float]:
    """The :data:`FIGURES` of an evaluation."""
    values = (
        evaluation.original.perplexity,
        evaluation.quantized.perplexity,
        evaluation.perplexity_increase,
        evaluation.kl_mean,
        evaluation.kl_standard_error,
        evaluation.top1_agreement,
    )
    return dict(zip(FIGURES, values, strict=True))


def evaluation_line(evaluation: Evaluation) -> str:
    """:func:`figures_line` of an evaluation, with what plain rounding costs beside."""
    line, rounding = figures_line(*figures_of(evaluation).values()), evaluation.rounding
    if rounding is None or rounding.kl_mean is None:
        return line
    return f"{line}; plain rounding: KL divergence {significant(rounding.kl_mean)} nats"


def markdown_list(rows: Iterable[tuple[str, str]]) -> list[str]:
    """The lines of a list of names and values in Markdown, and an empty one."""
    return [*(f"- **{name}**: {' '.join(value.split())}" for name, value in rows), ""]


def short_digests(text: str) -> str:
    """A text with the first 12 digits of every digest in it."""
    return _DIGEST.sub(r"\1…", text)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown, and an empty one."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for row in rows:
        cells = (" ".join(cell.replace("|", "\\|").split()) for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _not_finite(value: float) -> str:
    return "not a number" if math.isnan(value) else ("∞" if value > 0 else "\N{MINUS SIGN}∞")


FILTERS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        significant,
        short,
        percent,
        change,
        counted,
        integer,
        size,
        mebibytes,
        duration,
        plural,
    )
}
"""By name, for the templates."""
