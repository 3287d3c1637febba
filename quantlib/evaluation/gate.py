"""Whether a quantized checkpoint is good enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from quantlib.blockwise.experts import Experts
from quantlib.evaluation.figures import Figure, Figures
from quantlib.evaluation.limits import Limit, Limits
from quantlib.report.text import percent, plural
from quantlib.verdicts import Outcome, worst


@dataclass(frozen=True)
class Check:
    """One limit, and what was held against it.

    Attributes:
        name: Of the figure.
        value: What was measured.
        low: The figure may be as low as that.
        high: And as high as that.
        limit: What it is held against.
        source: Where the limit comes from.
        outcome: passed where the whole interval is within the limit, regression where nothing of it
            is, inconclusive between.
    """

    name: str
    value: float
    low: float
    high: float
    limit: float
    source: str
    outcome: Outcome

    @property
    def passed(self) -> bool:
        """Whether it is within its limit."""
        return self.outcome == "passed"


@dataclass(frozen=True)
class Gate:
    """The verdict.

    Attributes:
        checks: Everything that was held against a limit.
        broken: What the checkpoint does that its original does not, a sentence each.
        reason: Why the verdict is what it is, in words.
    """

    checks: tuple[Check, ...]
    broken: tuple[str, ...]
    reason: str

    @property
    def outcome(self) -> Outcome:
        """The verdict in a word."""
        return "broken" if self.broken else worst(check.outcome for check in self.checks)

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against it."""
        return self.outcome == "passed"

    def to_dict(self) -> dict[str, Any]:
        """The gate as it stands in the evaluation."""
        checks = [asdict(check) | {"passed": check.passed} for check in self.checks]
        return {
            "passed": self.passed,
            "outcome": self.outcome,
            "checks": checks,
            "broken": list(self.broken),
            "reason": self.reason,
        }


@dataclass(frozen=True)
class _Judged:
    """Puts checks together; what is no finite number is out of its limit."""

    checks: list[Check] = field(default_factory=list)

    def at_most(self, name: str, figure: Figure, limit: Limit) -> None:
        if not math.isfinite(figure.value) or figure.low > limit.value:
            outcome: Outcome = "regression"
        else:
            outcome = "passed" if figure.high <= limit.value else "inconclusive"
        self._add(name, figure, limit, outcome)

    def at_least(self, name: str, figure: Figure, limit: Limit) -> None:
        if not math.isfinite(figure.value) or figure.high < limit.value:
            outcome: Outcome = "regression"
        else:
            outcome = "passed" if figure.low >= limit.value else "inconclusive"
        self._add(name, figure, limit, outcome)

    def _add(self, name: str, figure: Figure, limit: Limit, outcome: Outcome) -> None:
        found = Check(
            name, figure.value, figure.low, figure.high, limit.value, limit.source, outcome
        )
        self.checks.append(found)


def judge(
    figures: Figures,
    limits: Limits,
    linears: Iterable[Mapping[str, Any]] = (),
    broken: Sequence[str] = (),
) -> Gate:
    """Holds figures against limits, and counts the error of measurement against the checkpoint.

    Args:
        figures: What was measured.
        limits: What it is held against.
        linears: What the quantizer recorded of each linear; its errors have to be finite. Experts
            among them are checked for having seen enough calibration tokens.
        broken: What was found wrong besides, a sentence each.
    """
    linears = list(linears)
    experts = Experts.of(linears)
    judged = _Judged()
    judged.at_most("perplexity_increase", figures.perplexity_increase, limits.perplexity_increase)
    judged.at_most("kl_mean", figures.kl, limits.kl_mean)
    if figures.times_rounding is not None and limits.times_rounding is not None:
        judged.at_most("times_rounding", figures.times_rounding, limits.times_rounding)
    judged.at_least("top1_agreement", figures.top1, limits.top1_agreement)
    if experts.tokens:
        share = Figure(experts.undercalibrated_share, 0)
        judged.at_most("undercalibrated_experts", share, limits.undercalibrated_experts)
    if not_finite := figures.not_finite + sum(map(_has_not_finite, linears)):
        verb = "is no finite number" if not_finite == 1 else "are no finite numbers"
        broken = (*broken, f"{plural(not_finite, 'figure')} {verb}")
    checks = tuple(judged.checks)
    return Gate(checks, tuple(broken), _reason(checks, broken, experts, figures.windows))


def _reason(checks: Sequence[Check], broken: Sequence[str], experts: Experts, windows: int) -> str:
    """The findings where it is broken, else what the worst checks say."""
    if broken:
        return "; ".join(broken)
    if missed := [check for check in checks if check.outcome == "regression"]:
        return "; ".join(_missed(check, experts) for check in missed)
    if open_ := [check for check in checks if check.outcome == "inconclusive"]:
        said = "; ".join(_undecided(check) for check in open_)
        return f"{plural(windows, 'window')} of text do not tell: {said}"
    return f"all {len(checks)} checks are within their limits"


def _has_not_finite(record: Mapping[str, Any]) -> bool:
    return any(isinstance(v, float) and not math.isfinite(v) for v in record.values())


def _percent(value: float) -> str:
    return percent(value) if math.isfinite(value) else f"{value:.1%}"


def _missed(check: Check, experts: Experts) -> str:
    value, limit = check.value, check.limit
    match check.name:
        case "perplexity_increase":
            return f"perplexity rose by {_percent(value)}, more than {_percent(limit)}"
        case "kl_mean":
            return f"mean KL divergence is {value:.4g} nats, above {limit:.4g}"
        case "times_rounding":
            return (
                f"mean KL divergence is {value:.3g} times that of plain rounding, more than "
                f"{limit:.3g} times"
            )
        case "top1_agreement":
            return f"top-1 agreement is {_percent(value)}, below {_percent(limit)}"
        case _:
            return (
                f"too few calibration tokens came to {_percent(value)} of the experts, more than "
                f"{_percent(limit)}: {experts.undercalibrated_in_words()}"
            )


def _undecided(check: Check) -> str:
    match check.name:
        case "perplexity_increase":
            what, number = "the rise of perplexity", _percent
        case "kl_mean":
            what, number = "mean KL divergence in nats", "{:.4g}".format
        case "times_rounding":
            what, number = "mean KL divergence over that of plain rounding", "{:.3g}".format
        case _:
            what, number = "top-1 agreement", _percent
    return (
        f"{what} may be {number(check.low)} to {number(check.high)}, and the limit is "
        f"{number(check.limit)}"
    )
