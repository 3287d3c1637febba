"""Whether a quantized checkpoint is good enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantlib.blockwise.experts import Experts
from quantlib.recipe import Thresholds
from quantlib.report.text import percent


@dataclass(frozen=True)
class Figures:
    """What was measured of a quantized model against its original.

    Attributes:
        perplexity_original: Of the original on the held-out text.
        perplexity_quantized: Of the quantized model on the same text.
        kl_mean: Mean KL(original ‖ quantized) over the positions, in nats.
        kl_standard_error: Of ``kl_mean``.
        top1_agreement: Share of positions whose most likely token is the same.
        not_finite: Positions at which a model gave something that is no finite number.
    """

    perplexity_original: float
    perplexity_quantized: float
    kl_mean: float
    kl_standard_error: float
    top1_agreement: float
    not_finite: int

    @property
    def perplexity_increase(self) -> float:
        """Relative: 0.1 is 10 % above the original's."""
        return self.perplexity_quantized / self.perplexity_original - 1


@dataclass(frozen=True)
class Check:
    """One threshold, and the value that was held against it."""

    name: str
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class Gate:
    """The verdict.

    Attributes:
        checks: Everything that was checked.
        reason: The failed checks with values and limits, in words.
    """

    checks: tuple[Check, ...]
    reason: str

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The gate as it stands in the evaluation."""
        checks = [asdict(check) for check in self.checks]
        return {"passed": self.passed, "checks": checks, "reason": self.reason}


def judge(
    figures: Figures, thresholds: Thresholds, linears: Iterable[Mapping[str, Any]] = ()
) -> Gate:
    """Holds figures against thresholds. What is not a number fails.

    Args:
        figures: What was measured.
        thresholds: The recipe's.
        linears: What the quantizer recorded of each linear; its errors have to be finite. Experts
            among them are checked for having seen enough calibration tokens.
    """
    linears = list(linears)
    not_finite = figures.not_finite + sum(map(_has_not_finite, linears))
    experts = Experts.of(linears)
    checks = [
        _at_most(
            "perplexity_increase", figures.perplexity_increase, thresholds.max_perplexity_increase
        ),
        _at_most("kl_mean", figures.kl_mean, thresholds.max_kl_mean),
        Check(
            "top1_agreement",
            figures.top1_agreement,
            thresholds.min_top1_agreement,
            figures.top1_agreement >= thresholds.min_top1_agreement,
        ),
        _at_most("not_finite", not_finite, 0),
    ]
    if experts.tokens:
        limit = thresholds.max_undercalibrated_experts
        checks.append(_at_most("undercalibrated_experts", experts.undercalibrated_share, limit))
    failed = [_in_words(check, experts) for check in checks if not check.passed]
    reason = "; ".join(failed) or f"all {len(checks)} checks are within their limits"
    return Gate(tuple(checks), reason)


def _at_most(name: str, value: float, limit: float) -> Check:
    return Check(name, value, limit, value <= limit)


def _has_not_finite(record: Mapping[str, Any]) -> bool:
    return any(isinstance(v, float) and not math.isfinite(v) for v in record.values())


def _percent(value: float) -> str:
    return percent(value) if math.isfinite(value) else f"{value:.1%}"


def _in_words(check: Check, experts: Experts) -> str:
    value, limit = check.value, check.limit
    match check.name:
        case "perplexity_increase":
            return f"perplexity rose by {_percent(value)}, more than {_percent(limit)}"
        case "kl_mean":
            return f"mean KL divergence is {value:.4g} nats, above {limit:.4g}"
        case "top1_agreement":
            return f"top-1 agreement is {_percent(value)}, below {_percent(limit)}"
        case "undercalibrated_experts":
            return (
                f"too few calibration tokens came to {_percent(value)} of the experts, more than "
                f"{_percent(limit)}: {experts.undercalibrated_in_words()}"
            )
        case _:
            return f"{value:.0f} figures are not finite numbers"
