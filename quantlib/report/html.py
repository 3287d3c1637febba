"""The report as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

import yaml

from quantlib.blockwise.experts import Experts
from quantlib.report.chart import error_chart, measure_of, summarize
from quantlib.report.evaluation import Check, Generation
from quantlib.report.explain import meaning, remedies
from quantlib.report.jinja_environment import environment
from quantlib.report.model import Report
from quantlib.report.search_chart import search_chart
from quantlib.report.spread_chart import spread_chart
from quantlib.report.text import percent, significant
from quantlib.serving.options import serve_line

_LEAVE_OUT = ("steps", "generations", "chart")
"""Parts of the page, by how soon a brief one goes without them."""

_WIDE = (1040, 440)
_NARROW = (400, 340)
_CHECK_NAMES = {
    "perplexity_increase": "Perplexity increase",
    "kl_mean": "Mean KL divergence, nats",
    "times_rounding": "KL divergence over plain rounding's",
    "top1_agreement": "Same top token",
    "undercalibrated_experts": "Experts with too few tokens",
}
_SHARES = ("perplexity_increase", "top1_agreement", "undercalibrated_experts")
_LOWER_LIMITS = ("top1_agreement",)


@dataclass(frozen=True)
class CheckRow:
    """One check of the gate, in words.

    Attributes:
        value: What was measured, with the interval that it lies in where that is known.
        bound: ``at most`` or ``at least``.
        source: Where the limit comes from.
        outcome: passed, inconclusive, or regression.
    """

    name: str
    value: str
    bound: str
    limit: str
    source: str
    outcome: str

    @property
    def passed(self) -> bool:
        """Whether it is within its limit."""
        return self.outcome == "passed"


@dataclass(frozen=True)
class ExpertRow:
    """The calibration tokens that came to the experts of one block."""

    block: int
    experts: int
    fewest: int
    median: float
    most: int
    undercalibrated: str


@dataclass(frozen=True)
class GenerationRow:
    """Two completions of a prompt, each split where they part.

    Attributes:
        alone: Whether there is only the quantized model's, as what they have in common.
    """

    prompt: str
    same: str
    original_rest: str
    quantized_rest: str
    alone: bool = False


def render_html(report: Report) -> str:
    """The page of a report. Whatever text it holds is escaped."""
    return _render(report, brief=False)


def render_brief_html(report: Report, limit: int, whole_address: str) -> str:
    """The page without its longest lists, and without as much as it takes to stay below a size.

    Args:
        report: What it shows.
        limit: Bytes that it has to stay below.
        whole_address: Where the whole page is.
    """
    for count in range(len(_LEAVE_OUT) + 1):
        page = _render(report, brief=True, left_out=_LEAVE_OUT[:count], whole_address=whole_address)
        page = _squeeze(page)
        if len(page.encode()) < limit:
            break
    return page


def _squeeze(page: str) -> str:
    """The page without the white space and comments of its sources."""
    style, rest = page.split("</style>", 1)
    style = style.partition("@media (max-width: 620px)")[0]  # for the narrow chart, and for paper
    style = re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL)
    style = re.sub(r"\s*([{};:,])\s*", r"\1", style)
    return style + "</style>" + re.sub(r">\s*\n\s*<", ">\n<", rest)


def _render(
    report: Report, *, brief: bool, left_out: tuple[str, ...] = (), whole_address: str = ""
) -> str:
    evaluation = report.evaluation
    charts = [
        (
            "wide",
            error_chart(report.linears, report.model.blocks, report.model.quantized_blocks, *_WIDE),
        ),
        (
            "narrow",
            error_chart(
                report.linears, report.model.blocks, report.model.quantized_blocks, *_NARROW
            ),
        ),
    ]
    return (
        environment(autoescape=True)
        .get_template("report.html.j2")
        .render(
            report=report,
            brief=brief,
            left_out=left_out,
            whole_address=whole_address,
            checks=[check_row(check) for check in evaluation.gate.checks] if evaluation else [],
            meaning=meaning(evaluation) if evaluation else "",
            remedies=remedies(report),
            spread=spread_chart(evaluation.spread)
            if evaluation and evaluation.spread and not brief
            else None,
            charts=[
                (name, chart)
                for name, chart in charts
                if chart is not None and not (brief and name == "narrow")
            ],
            searched=None if report.search is None else search_chart(report.search),
            measure=measure_of(report.linears),
            summaries=summarize(report.linears),
            expert_rows=expert_rows(report),
            expert_kinds=expert_kinds(report),
            single=[record for record in report.linears if record.expert is None],
            raised=[record for record in report.linears if record.damping_rose],
            dampings=sorted({r.damping for r in report.linears if r.damping is not None}),
            longest_step=max((step.seconds or 0.0 for step in report.steps), default=0.0),
            generations=[generation_row(pair) for pair in evaluation.generations]
            if evaluation
            else [],
            recipe_yaml=yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True),
            serve_line=serve_line(".", report.serve),
        )
    )


def expert_rows(report: Report) -> list[ExpertRow]:
    """One row per block with experts that were calibrated."""
    experts = Experts.of(record.model_dump() for record in report.linears)
    return [
        ExpertRow(
            block=block,
            experts=len(tokens),
            fewest=min(tokens.values()),
            median=statistics.median(tokens.values()),
            most=max(tokens.values()),
            undercalibrated=", ".join(map(str, experts.undercalibrated_of(block))) or "none",
        )
        for block, tokens in experts.by_block().items()
    ]


def expert_kinds(report: Report) -> str:
    """How often text of each kind reaches the experts that too few tokens came to, in words."""
    if report.calibration is None:
        return ""
    experts = Experts.of(record.model_dump() for record in report.linears)
    rates = experts.reached_by(report.calibration.kinds)
    return ", ".join(f"{significant(rate, 2)} of {kind}" for kind, rate in rates)


def check_row(check: Check) -> CheckRow:
    """A check in words; shares are shown as percentages."""
    name = check.name.removeprefix("max_").removeprefix("min_")
    number = percent if name in _SHARES else significant
    value = number(check.value)
    if check.low is not None and check.high is not None and check.low < check.high:
        value += f" ({number(check.low)} to {number(check.high)})"
    lower = check.name.startswith("min_") or name in _LOWER_LIMITS
    return CheckRow(
        name=_CHECK_NAMES.get(name, name.replace("_", " ").capitalize()),
        value=value,
        bound="at least" if lower else "at most",
        limit=number(check.limit),
        source=check.source,
        outcome=check.outcome or ("passed" if check.passed else "regression"),
    )


def generation_row(pair: Generation) -> GenerationRow:
    """Splits two completions after the words that they begin with in common."""
    if pair.original is None:
        return GenerationRow(pair.prompt, pair.quantized.lstrip(" "), "", "", alone=True)
    original, quantized = pair.original.lstrip(" "), pair.quantized.lstrip(" ")
    pairs = enumerate(zip(original, quantized, strict=False))
    length = next((at for at, (a, b) in pairs if a != b), min(len(original), len(quantized)))
    shared = original[:length]
    if original != quantized:
        shared = shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1]
    return GenerationRow(
        prompt=pair.prompt,
        same=shared,
        original_rest=original[len(shared) :],
        quantized_rest=quantized[len(shared) :],
    )
