"""The HTML page, read back by parsers."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from quantlib.report.build import build_report
from quantlib.report.evaluation import Check, Generation
from quantlib.report.html import (
    CheckRow,
    check_row,
    generation_row,
    render_brief_html,
    render_html,
)
from quantlib.report.model_card import render_model_card

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """The text of a page, its tags and attributes; fails on tags that are not balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    @property
    def text(self) -> str:
        """All of it, in the order of the page."""
        return re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)


def page_of(run, evaluation) -> tuple[str, Page]:
    html = render_html(build_report(run.store, run.recipe, run.checkpoint, evaluation))
    return html, Page(html)


def test_verdict_and_figures_are_on_the_page(run) -> None:
    _, page = page_of(run, run.evaluation)
    for expected in (
        "Tiny-Llama-6",
        "GPTQ, W4A16, groups of 64, symmetric, in the gptq format.",
        "Passed",
        "all 3 checks are within their limits",
        "16.77",
        "original 15.38, +9.0%",
        "0.108",
        "± 0.0031 nats",
        "83.8%",
        "116.0 MiB",
        "original 256.6 MiB, 2.21\N{MULTIPLICATION SIGN} smaller",
        "original 210, on cpu",
        "vllm 0.32.0 on cpu",
        "40 windows of 512 tokens, 20,480 in all",
        "over the whole vocabulary, at every position but the first of a window",
        "vllm serve . --dtype bfloat16",
        "The factorization of 1 of 42 linears needed more damping",
        "99.8 s",  # sum of 4 + 0.5 + 20 + 0.25 + 30 + 42 + 3
        "69.8 s",  # the same with the slower quantize step only
    ):
        assert expected in page.text
    assert page.text.index("Passed") < page.text.index("Perplexity")


def test_a_failed_verdict_names_the_checks_that_failed(run) -> None:
    evaluation = dict(run.evaluation)
    evaluation["kl_mean"] = 0.3125
    evaluation["gate"] = {
        "passed": False,
        "checks": [
            {"name": "kl_mean", "value": 0.3125, "limit": 0.2, "passed": False},
            {"name": "top1_agreement", "value": 0.8381, "limit": 0.75, "passed": True},
        ],
        "reason": "kl_mean is above its limit",
    }
    html, page = page_of(run, evaluation)
    assert 'class="verdict regression"' in html
    verdict = page.text[: page.text.index("Weights")]
    assert "kl_mean is above its limit" in verdict
    assert "Mean KL divergence, nats: 0.3125, allowed is at most 0.2000" in verdict
    assert "at least 75.0%" in page.text


def test_without_evaluation_the_page_says_how_to_validate(run) -> None:
    html, page = page_of(run, None)
    assert 'class="verdict not_validated"' in html
    assert "--validate" in page.text
    assert "Perplexity" not in page.text
    assert "Side by side" not in page.text


def test_strengths_of_the_suppression_are_told(make_run, tmp_path: Path) -> None:
    alpha = [0.8, None, 0.55, 0.8, 0.8, 0.8]
    run = make_run(tmp_path / "smoothed", suppression={"options": {"alpha": "auto"}}, alpha=alpha)
    _, page = page_of(run, None)
    expected = "Outlier suppression smooth_quant, alpha 0.55 in 1 block, 0.8 in 4 blocks"
    assert expected in page.text


def test_why_groups_are_of_their_size_is_told_on_page_and_card(run) -> None:
    report = build_report(run.store, run.recipe, run.checkpoint, None)
    assert "divides" not in Page(render_html(report)).text
    reason = "group size 64: the largest of 128, 64, 32 that divides every linear's input"
    method = report.method.model_copy(update={"group_size_reason": reason})
    told = report.model_copy(update={"method": method})
    assert f"format; {reason}." in Page(render_html(told)).text
    assert f"as in the original; {reason}.\n" in render_model_card(told)


def test_a_fallback_of_the_engine_is_told(run) -> None:
    evaluation = run.evaluation | {
        "engine": "transformers",
        "fallback_reason": "vLLM has no wheel for this platform",
    }
    _, page = page_of(run, evaluation)
    assert "Judged by transformers, not by the engine that the recipe asks for." in page.text
    assert "vLLM has no wheel for this platform" in page.text


def test_what_was_judged_in_the_place_of_what_is_served_is_told(run) -> None:
    reason = "vLLM has no CPU kernel for 8-bit weights alone; its loader is left to the dry load"
    evaluation = run.evaluation | {"checkpoint_dequantized_reason": reason}
    _, page = page_of(run, evaluation)
    words = "The quantized model was judged by its dequantized weights, not as it is served: "
    assert f"{words}{reason}." in page.text
    _, page = page_of(run, run.evaluation | {"checkpoint_emulated_reason": reason})
    words = "The quantized model was computed by emulation, which says nothing of its speed: "
    assert f"{words}{reason}." in page.text


def test_what_windows_begin_with_is_told(run) -> None:
    text = run.evaluation["text"] | {"opening": ["<bos>"]}
    _, page = page_of(run, run.evaluation | {"text": text})
    assert "Every window begins with <bos>" in page.text


def test_text_of_models_is_escaped_and_nothing_is_loaded(run) -> None:
    html, page = page_of(run, run.evaluation)
    assert "<script" not in html and "<img" not in html
    assert "<script>alert('prompt')</script>" in page.text
    assert "<img src=x onerror=alert(1)>" in page.text
    assert "<b>bold</b> & {{ braces }}" in page.text
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    references = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("href", "src") and value
    ]
    assert references and all(value.startswith("#marker") for value in references)
    assert "url(" not in html and "@import" not in html


def charts_of(html: str) -> dict[str, ElementTree.Element]:
    found = re.findall(r'(<svg class="chart (\w+)".*?</svg>)', html, re.DOTALL)
    return {name: ElementTree.fromstring(svg) for svg, name in found}


def test_charts_show_every_linear_inside_the_drawing(run) -> None:
    html, _ = page_of(run, run.evaluation)
    charts = charts_of(html)
    assert set(charts) == {"wide", "narrow"}
    for chart in charts.values():
        _, _, width, height = map(float, chart.attrib["viewBox"].split())
        markers = chart.findall(".//use")
        assert len(markers) == 42
        for marker in markers:
            assert 0 <= float(marker.attrib["x"]) < width
            assert 0 <= float(marker.attrib["y"]) < height
        assert len(chart.findall("g")) == 7
        assert len(chart.findall(".//circle")) == 1  # the linear that was damped more
        title, description = chart.find("title"), chart.find("desc")
        assert title is not None and description is not None
        labelled_by = chart.attrib["aria-labelledby"].split()
        assert labelled_by == [title.attrib["id"], description.attrib["id"]]


def test_ids_are_unique(run) -> None:
    _, page = page_of(run, run.evaluation)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_tables_have_header_cells(run) -> None:
    _, page = page_of(run, run.evaluation)
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert headers and all(attributes.get("scope") in ("col", "row") for attributes in headers)


@pytest.mark.parametrize(
    ("original", "quantized", "expected"),
    [
        (" Paris is big", " Paris is old", ("Paris is ", "big", "old")),
        (" the same", " the same", ("the same", "", "")),
        (" Parisian", " Paris", ("", "Parisian", "Paris")),
        ("", " x", ("", "", "x")),
    ],
)
def test_completions_part_at_a_word(original: str, quantized: str, expected: tuple) -> None:
    row = generation_row(Generation(prompt="p", original=original, quantized=quantized))
    assert (row.same, row.original_rest, row.quantized_rest) == expected


def test_a_check_shows_the_interval_and_where_its_limit_is_from() -> None:
    check = Check(
        name="kl_mean",
        value=0.19,
        low=0.18,
        high=0.2,
        limit=0.195,
        source="for 4 bits",
        outcome="inconclusive",
        passed=False,
    )
    row = check_row(check)
    assert row.value == "0.1900 (0.1800 to 0.2000)"
    assert (row.source, row.outcome, row.passed) == ("for 4 bits", "inconclusive", False)


def test_unknown_checks_are_shown_by_their_own_name() -> None:
    row = check_row(Check(name="min_share_of_luck", value=0.5, limit=0.25, passed=True))
    assert (row.name, row.bound, row.value, row.limit) == (
        "Share of luck",
        "at least",
        "0.5000",
        "0.2500",
    )


def test_kept_blocks_are_shaded(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path, layers=(1, 2))
    html, page = page_of(run, run.evaluation)
    assert "4 of 6 blocks kept exact" in page.text
    assert html.count('class="band"') == 4  # two runs of blocks, in two drawings


def test_experts_are_a_table_of_their_own(run, make_run, make_experts, tmp_path: Path) -> None:
    assert "Too few tokens" not in page_of(run, None)[1].text
    experts = [*make_experts(1, (300, 90, 4000, 0)), *make_experts(4, (500, 700))]
    mixture = make_run(tmp_path / "mixture", experts=experts)
    _, page = page_of(mixture, None)
    assert "One that fewer than 256 came to" in page.text
    assert "1 4 0 195 4,000 1, 3" in page.text
    assert "4 2 500 600 700 none" in page.text
    assert "All 42 linears outside of experts" in page.text
    assert "mlp.experts.*.gate_proj" in page.text
    assert "mlp.experts.2.gate_proj" not in page.text


def test_the_check_of_experts_has_a_name_and_shares() -> None:
    check = Check(name="undercalibrated_experts", value=0.3, limit=0.25, passed=False)
    assert check_row(check) == CheckRow(
        "Experts with too few tokens", "30.0%", "at most", "25.0%", "", "regression"
    )


@pytest.mark.parametrize("blocks", [6, 30, 126])
def test_the_brief_page_is_small_whatever_the_model(make_run, tmp_path: Path, blocks: int) -> None:
    run = make_run(tmp_path, blocks=blocks)
    report = build_report(run.store, run.recipe, run.checkpoint, run.evaluation)
    html = render_brief_html(report, 16 * 1024, "s3://bucket/report.html")
    assert len(html.encode()) < 16 * 1024
    page = Page(html)
    for shown in ("Passed", "16.77", "Mean KL divergence", "q_proj", run.recipe.digest()):
        assert shown in page.text
    assert "The whole report: s3://bucket/report.html" in page.text
    assert ('class="chart wide"' in html) is (blocks < 126)


def test_where_the_bits_are(run) -> None:
    report = build_report(run.store, run.recipe, run.checkpoint, run.evaluation, run.validation)
    page = Page(render_html(report))
    assert "MLP W4A16 in groups of 64 40.5 MiB 80,000,000 4.25" in page.text
    assert "Embeddings exact 53.4 MiB 28,000,000 16.0" in page.text
    assert "7.30 bits per weight" in page.text
    exact = [attributes for tag, attributes in page.tags if tag == "rect"]
    # The original's bar, and that of the embeddings.
    assert [each.get("class") for each in exact].count("original") == 2
    card = render_model_card(report)
    assert "- MLP: W4A16 in groups of 64, 90 linears, 4.25 bits per weight." in card
    assert "Embeddings:" not in card
