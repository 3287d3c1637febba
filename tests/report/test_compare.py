"""Runs side by side: what is compared, what makes it unfair, and what is no run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantlib.errors import InvalidInputError
from quantlib.report.build import build_report
from quantlib.report.compare import Comparison, compare_runs
from quantlib.report.compare_rows import change_rows, description_rows, figure_rows
from quantlib.report.model import JSON_NAME
from quantlib.report.run_reports import find_report, read_runs

Change = Callable[[dict[str, Any]], None]
Save = Callable[..., Path]
OTHER_DIGEST = "sha256:" + "0d" * 32


@pytest.fixture
def save(run, tmp_path: Path) -> Save:
    """Writes the report of a run to a folder of its own, with a change."""
    report = build_report(run.store, run.recipe, run.checkpoint, run.evaluation, run.validation)
    content = report.to_json()

    def write(name: str, change: Change = lambda _: None) -> Path:
        data = json.loads(content)
        change(data)
        folder = tmp_path / name
        folder.mkdir()
        (folder / JSON_NAME).write_text(json.dumps(data))
        return folder

    return write


def better(data: dict[str, Any]) -> None:
    data["evaluation"] |= {"kl_mean": 0.054, "kl_standard_error": 0.002, "top1_agreement": 0.9}
    data["evaluation"]["quantized"]["perplexity"] = 16.0
    data["method"]["outlier_suppression"] = "smooth_quant"
    data["recipe"]["outlier_suppression"] = {"method": "smooth_quant", "options": {}}
    for record in data["linears"]:
        record["relative_error"] /= 2


def not_validated(data: dict[str, Any]) -> None:
    data["evaluation"] = None
    data["verdict"] = {"outcome": "not_validated", "reason": ""}


def compared(*folders: Path) -> Comparison:
    return compare_runs(read_runs(folders))


def test_figures_of_every_run(save: Save) -> None:
    comparison = compared(save("plain"), save("smooth", better))
    figures = comparison.figures
    assert figures["perplexity"].values == (16.7655, 16.0)
    assert figures["kl_mean"].values == (0.108, 0.054)
    assert figures["kl_mean"].change(1) == pytest.approx(-0.5)
    assert figures["kl_mean"].change(0) is None
    assert figures["kl_standard_error"].values == (0.0031, 0.002)
    assert figures["bytes"].values == (121_634_816, 121_634_816)
    # Without validate (50 s, 1400 MiB), the reference it is judged by (20 s) and plan (0.5 s).
    assert figures["seconds"].values == (99.25, 99.25)
    assert figures["peak_mib"].values == (640, 640)
    assert comparison.unfair == ()
    assert comparison.unlike_errors == ()
    assert comparison.all_validated
    first, second = comparison.block_errors
    report = comparison.runs[0].report
    assert list(first) == list(range(6))
    errors = [r.relative_error for r in report.linears if r.block == 3 and r.relative_error]
    assert first[3] == pytest.approx(sum(errors) / 7)
    assert second[3] == pytest.approx(first[3] / 2)


def test_rows_in_words(save: Save) -> None:
    comparison = compared(save("plain"), save("smooth", better))
    rows = {
        row.name: [(cell.value, cell.beside) for cell in row.cells]
        for of in (figure_rows, description_rows, change_rows)
        for row in of(comparison)
    }
    assert rows["Perplexity"] == [
        ("16.77", "+9.0% to the original's 15.38"),
        ("16.00", "+4.0% to the original's 15.38, \N{MINUS SIGN}4.6% to A"),
    ]
    assert rows["Mean KL divergence, nats"] == [
        ("0.108", "± 0.0031"),
        ("0.0540", "± 0.0020, \N{MINUS SIGN}50.0% to A"),
    ]
    assert rows["Same top token"] == [("83.8%", ""), ("90.0%", "")]
    assert rows["Weights"][1] == ("116.0 MiB", "2.21\N{MULTIPLICATION SIGN} smaller, as A")
    assert rows["Method"] == [("gptq", ""), ("gptq", "after smooth_quant")]
    assert rows["Scheme"][0] == ("W4A16", "groups of 64, symmetric")
    assert rows["outlier_suppression.method"] == [("\N{EN DASH}", ""), ("smooth_quant", "")]
    assert "quantization.weights.bits" not in rows


def test_runs_that_are_not_validated_have_empty_cells(save: Save) -> None:
    comparison = compared(save("plain"), save("quick", not_validated))
    assert not comparison.all_validated
    assert comparison.figures["perplexity"].values == (16.7655, None)
    rows = {row.name: row.cells for row in figure_rows(comparison)}
    assert rows["Verdict"][1].value == "not validated"
    for name in ("Perplexity", "Mean KL divergence, nats", "Same top token"):
        assert (rows[name][1].value, rows[name][1].beside) == ("\N{EN DASH}", "")
    assert rows["Weights"][1].value == "116.0 MiB"
    assert comparison.unfair == ()


def set_path(*path: str, to: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        for part in path[:-1]:
            data = data[part]
        data[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            set_path("model", "digest", to=OTHER_DIGEST),
            "The original models differ: A, B: Tiny-Llama-6 (5a5a5a5a5a5a); C: Tiny-Llama-6 "
            "(0d0d0d0d0d0d).",
        ),
        (
            set_path("evaluation", "text", "digest", to=OTHER_DIGEST),
            "They were judged on other held-out texts: A, B: the held-out text that ships with "
            "quantlib, 20,480 tokens (777777777777); C: the held-out text that ships with "
            "quantlib, 20,480 tokens (0d0d0d0d0d0d).",
        ),
        (
            set_path("evaluation", "engine", to="transformers"),
            "They were judged by other engines: A, B: vllm 0.32.0 on cpu; C: transformers 0.32.0 "
            "on cpu.",
        ),
    ],
)
def test_what_makes_it_unfair(save: Save, change: Change, sentence: str) -> None:
    assert compared(save("a"), save("b"), save("c", change)).unfair == (sentence,)


def test_errors_measured_on_other_texts_cannot_be_compared(save: Save) -> None:
    change = set_path("calibration", "digest", to=OTHER_DIGEST)
    comparison = compared(save("a"), save("b", change))
    assert comparison.unfair == ()
    (sentence,) = comparison.unlike_errors
    assert "measured on other texts: A: the calibration text that" in sentence


def rounded(data: dict[str, Any]) -> None:
    for record in data["linears"]:
        record["relative_error"] = None


def test_errors_of_smoothed_weights_cannot_be_compared_with_others(save: Save) -> None:
    def smoothed(data: dict[str, Any]) -> None:
        better(data | {"linears": []})
        rounded(data)

    comparison = compared(save("a", rounded), save("b", smoothed))
    assert comparison.unlike_errors == (
        "Errors of linears cannot be compared, the weights were transformed before: A: not "
        "transformed; B: smooth_quant.",
    )
    rows = {row.name: row.cells for row in figure_rows(comparison)}
    assert [cell.beside for cell in rows["Weight error of linears, mean"]] == ["", ""]


def test_errors_of_outputs_and_of_weights_cannot_be_compared(save: Save) -> None:
    (sentence,) = compared(save("a"), save("b"), save("c", rounded)).unlike_errors
    assert sentence == (
        "Errors of linears cannot be compared, not every method knows those of outputs: A, B: of "
        "outputs; C: of weights."
    )


def test_errors_of_other_models_cannot_be_compared(save: Save) -> None:
    (sentence,) = compared(
        save("a"), save("b", set_path("model", "digest", to=OTHER_DIGEST))
    ).unlike_errors
    assert sentence.startswith(
        "Errors of linears cannot be compared, the original models differ: A: Tiny-Llama-6"
    )


def test_times_are_factors_of_the_fastest(save: Save) -> None:
    def slower(data: dict[str, Any]) -> None:
        for step in data["steps"]:
            step["seconds"] *= 1.5

    comparison = compared(save("a", slower), save("b"))
    assert comparison.figures["seconds"].factor(0) == pytest.approx(1.5)
    rows = {row.name: row.cells for row in figure_rows(comparison)}
    assert [cell.beside for cell in rows["Time to quantize"]] == [
        "1.50 times the fastest's",
        "the fastest",
    ]


def test_a_checkpoint_that_was_there_already_took_no_time_that_is_known(save: Save) -> None:
    def adopted(data: dict[str, Any]) -> None:
        data["steps"] = [step for step in data["steps"] if step["step"] in ("fetch", "validate")]
        data["steps"].append({"step": "adopt", "range": None, "seconds": 2.0, "peak_mib": 90})

    comparison = compared(save("a", adopted), save("b"))
    assert comparison.figures["seconds"].values == (None, 99.25)
    assert comparison.figures["peak_mib"].values == (None, 640)
    rows = {row.name: row.cells for row in figure_rows(comparison)}
    assert [cell.beside for cell in rows["Time to quantize"]] == ["", ""]


def test_errors_are_of_linears_that_all_have_quantized(save: Save) -> None:
    def without_down_proj(data: dict[str, Any]) -> None:
        data["linears"] = [r for r in data["linears"] if r["linear"] != "mlp.down_proj"]

    first, second = compared(save("a"), save("b", without_down_proj)).block_errors
    assert first == second


def test_errors_of_weights_where_a_method_looks_at_no_inputs(save: Save) -> None:
    comparison = compared(save("a"), save("b", rounded))
    assert comparison.measure == "relative_weight_error"
    assert comparison.block_errors[1][0] == pytest.approx(0.008 + 0.0005 * 3)


def test_json_holds_every_figure(save: Save) -> None:
    found = compared(save("a"), save("b", not_validated)).to_json()
    assert [run["kl_mean"] for run in found["runs"]] == [0.108, None]
    assert found["runs"][0]["model_digest"] == "sha256:" + "5a" * 32
    assert found["runs"][0]["letter"] == "A"
    assert found["take"] == ("A",)
    assert found["conclusion"][1] == "B (b) was not judged."


def test_places_of_a_report(save: Save, tmp_path: Path) -> None:
    report = save("a") / JSON_NAME
    judged = tmp_path / "judged" / "validate" / "artifacts"
    judged.mkdir(parents=True)
    shutil.copy(report, judged)
    published = tmp_path / "run" / "publish" / "parameters"
    published.mkdir(parents=True)
    (published / "address").write_text(str(report.parent))
    assert find_report(report) == report
    assert find_report(report.parent) == report
    assert find_report(tmp_path / "judged") == judged / JSON_NAME
    assert find_report(tmp_path / "run") == report


def test_a_published_folder_is_called_by_the_start_of_its_digest(save: Save) -> None:
    runs = read_runs([save("0123456789abcdef" * 4), save("b") / JSON_NAME])
    assert [run.name for run in runs] == ["0123456789ab", "b"]


def test_all_faults_at_once(save: Save, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("no")
    (tmp_path / "other.json").write_text("{}")
    future = save("future", set_path("schema", to="quantlib/report/9"))
    broken = save("broken", set_path("sizes", to=None))
    names = ("missing", "empty", "text.json", "other.json")
    with pytest.raises(InvalidInputError) as caught:
        read_runs([*(tmp_path / name for name in names), future, broken])
    said = [str(problem).removeprefix(str(tmp_path) + "/") for problem in caught.value.problems]
    assert said[0] == "missing: there is no such file or folder"
    assert said[1].startswith("empty: holds no quantization_report.json; give a folder that")
    assert said[2].startswith("text.json: is not JSON: ")
    assert said[2].endswith("; so it is no quantization report")
    assert said[3] == "other.json: is no quantization report"
    assert said[4].endswith(
        "has the schema 'quantlib/report/9'; this quantlib reads quantlib/report/1"
    )
    assert "is no valid report" in said[5]


@pytest.mark.parametrize("count", [0, 1, 8])
def test_two_to_seven_runs(save: Save, count: int) -> None:
    with pytest.raises(InvalidInputError, match=f"RUNS: {count} given; give 2 to 7"):
        read_runs([save("a")] * count if count else [])
