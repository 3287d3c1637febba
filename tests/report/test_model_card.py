"""The model card and the command that serves."""

import json

import yaml

from quantlib.report.build import build_report
from quantlib.report.html import render_html
from quantlib.report.model_card import render_model_card
from quantlib.serving.options import serve_line, serve_options


def card_of(run, evaluation) -> tuple[dict, str]:
    card = render_model_card(
        build_report(run.store, run.recipe, run.checkpoint, evaluation, run.validation)
    )
    start, front_matter, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front_matter), body


def test_front_matter_names_base_model_and_scheme(run) -> None:
    front_matter, _ = card_of(run, run.evaluation)
    assert front_matter["base_model"] == "example-org/Tiny-Llama-6"
    assert front_matter["base_model_relation"] == "quantized"
    assert front_matter["license"] == "unknown"
    assert front_matter["tags"] == ["quantized", "vllm", "gptq", "4-bit", "w4a16"]


def test_card_holds_the_measured_table_and_the_command(run) -> None:
    _, body = card_of(run, run.evaluation)
    assert "| Perplexity | 15.38 | 16.77 | +9.0% |" in body
    assert "| Weights | 256.6 MiB | 116.0 MiB | 2.21\N{MULTIPLICATION SIGN} smaller |" in body
    assert "| Mean KL divergence, nats | 0.1080 | at most 0.2000 | passed |" in body
    assert "    vllm serve . --dtype bfloat16\n" in body
    assert "trust-remote-code" not in body
    assert "6 of 6 blocks quantized, 42 linears" in body
    assert f"`{run.recipe.digest()}`" in body
    assert "the general text that ships with quantlib" in body


def test_rows_with_images_are_counted(run) -> None:
    report = build_report(run.store, run.recipe, run.checkpoint, run.evaluation, run.validation)
    assert "with images" not in render_model_card(report)
    seen = report.calibration.model_copy(update={"with_images": 3})
    shown = report.model_copy(update={"calibration": seen})
    assert "tokens (3 rows with images) from" in render_model_card(shown)
    assert "of which 3 windows are rows with images" in render_html(shown)


def test_card_without_evaluation_says_so(run) -> None:
    _, body = card_of(run, None)
    assert "**Not validated:**" in body
    assert "Perplexity" not in body


def test_serve_arguments_become_flags() -> None:
    arguments = {
        "max_model_len": 2048,
        "enforce_eager": True,
        "trust_remote_code": False,
        "seed": None,
        "compilation_config": {"level": 3},
    }
    words = serve_options(arguments)
    assert words[:4] == ["--max-model-len", "2048", "--enforce-eager", "--compilation-config"]
    assert json.loads(words[4]) == {"level": 3}
    assert serve_line("my model", {}) == "vllm serve 'my model'"
