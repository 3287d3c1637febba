"""What the figures of a judgement mean, in a sentence, and what may be done about a refusal."""

from __future__ import annotations

from quantlib.report.evaluation import Evaluation
from quantlib.report.method import ForeignMethod
from quantlib.report.model import LinearError, Report
from quantlib.report.text import percent, significant

_MEANT = (128, 512)
"""Windows and tokens of a calibration that is worth its name."""

_SMALLEST_GROUP = 32


def meaning(evaluation: Evaluation) -> str:
    """A sentence on what was measured, for who knows none of the words."""
    said = (
        f"At {percent(evaluation.top1_agreement)} of the places in the text the quantized model "
        f"finds the same word most likely as its original; its predictions are "
        f"{significant(evaluation.kl_mean, 2)} nats away on average"
    )
    rounding = evaluation.rounding
    if rounding is None:
        return f"{said}."
    if rounding.kl_mean is None:
        return f"{said}. Plain rounding is not shown beside: {rounding.absent}."
    times = evaluation.kl_mean / rounding.kl_mean if rounding.kl_mean else float("nan")
    return (
        f"{said}, {significant(times, 2)} times what rounding to nearest costs in the same scheme "
        f"({significant(rounding.kl_mean, 2)} nats)."
    )


def remedies(report: Report) -> list[str]:
    """What to try where a checkpoint was refused, the likeliest first; empty where it was not."""
    if not report.verdict.refused or report.evaluation is None:
        return []
    if report.verdict.outcome == "broken":
        return [
            "Mend what is named above, or quantize again: no limit and no other method helps where "
            "the checkpoint does not say or hold what its original does."
        ]
    found = []
    if report.verdict.outcome == "inconclusive":
        found.append(
            "Judge on more text: a larger validation.max_samples, and a longer text in "
            "validation.dataset."
        )
    if isinstance(report.method, ForeignMethod):
        return found
    found += _other_numbers(report)
    method = report.method
    if method.quantizer == "minmax" or report.calibration is None:
        found.append("A method that looks at text: quantization.method: gptq or awq.")
    elif report.calibration.samples < _MEANT[0] or report.calibration.sequence_length < _MEANT[1]:
        found.append(
            f"More calibration text than {report.calibration.samples} windows of "
            f"{report.calibration.sequence_length} tokens: calibration.num_samples: {_MEANT[0]}."
        )
    if method.activations != "none" and method.outlier_suppression is None:
        found.append("Outliers smoothed first: outlier_suppression: {method: smooth_quant}.")
    return found


def _other_numbers(report: Report) -> list[str]:
    """Finer numbers: for the linear that loses most, then for all."""
    method, found = report.method, []
    assert not isinstance(method, ForeignMethod)
    if report.linears:
        worst = max(report.linears, key=_error)
        scheme = "W8A16" if method.bits < 8 else "exact"
        found.append(
            f"A rule for what loses most, {worst.linear} of block {worst.block} "
            f"({significant(_error(worst), 2)} of its energy): quantization.schemes: "
            f"[{{scheme: {scheme}, linears: [{worst.line.rpartition('.')[2]}], "
            f"blocks: [{worst.block}]}}]."
        )
    if method.weight_type == "int" and not method.schemes and method.bits < 8:
        if method.group_size > _SMALLEST_GROUP or method.group_size == -1:
            found.append(
                f"Smaller groups: quantization.weights.group_size: {_SMALLEST_GROUP} in the place "
                f"of {method.group_size}."
            )
        found.append("More bits where they cost least: quantlib quantize --budget 5bits.")
    return found


def _error(linear: LinearError) -> float:
    """Of the output, or of the weight where the method looked at no inputs."""
    known = linear.relative_error
    return linear.relative_weight_error if known is None else known
