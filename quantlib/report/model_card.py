"""The model card: README.md of a published checkpoint."""

from __future__ import annotations

from typing import Any

import yaml

from quantlib.report.explain import meaning
from quantlib.report.html import check_row
from quantlib.report.jinja_environment import environment
from quantlib.report.method import Method
from quantlib.report.model import Report
from quantlib.report.text import counted
from quantlib.serving.options import serve_line

CARD_NAME = "README.md"


def render_model_card(report: Report) -> str:
    """The card in Markdown, with the front matter that model hubs read."""
    evaluation = report.evaluation
    return (
        environment(autoescape=False)
        .get_template("model_card.md.j2")
        .render(
            report=report,
            front_matter=yaml.safe_dump(_front_matter(report), sort_keys=False, allow_unicode=True),
            meaning=meaning(evaluation) if evaluation else "",
            checks=[check_row(check) for check in evaluation.gate.checks] if evaluation else [],
            serve_line=serve_line(".", report.serve),
            raised=sum(record.damping_rose for record in report.linears),
            source=", ".join(
                f"{name} {counted(value)}"
                for name, value in report.model.source.items()
                if value is not None
            ),
        )
    )


def _schemes(method: Method) -> list[str]:
    """The tags that say how numbers are represented."""
    if method.schemes:
        return ["mixed-precision", *(scheme.partition(" ")[0].lower() for scheme in method.schemes)]
    return [f"{method.bits}-bit", method.scheme.lower()]


def _front_matter(report: Report) -> dict[str, Any]:
    model, method = report.model, report.method
    assert isinstance(method, Method), "what is published is what the steps made"
    tags = ["quantized", "vllm", method.quantizer, *_schemes(method)]
    if method.kv_cache:
        tags.append("fp8-kv-cache")
    if method.format not in tags:
        tags.append(method.format)
    front: dict[str, Any] = {"license": model.source.get("license") or "unknown"}
    if repo := model.source.get("repo"):
        front |= {"base_model": repo, "base_model_relation": "quantized"}
    return front | {"pipeline_tag": "text-generation", "library_name": "vllm", "tags": tags}
