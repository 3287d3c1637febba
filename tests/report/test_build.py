"""Reports from the receipts of a run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from quantlib.errors import InvalidInputError, StoreError
from quantlib.report.build import _in_order, _part, build_report, model_name
from quantlib.report.model import Report


def test_report_holds_what_the_steps_recorded(run) -> None:
    report = build_report(run.store, run.recipe, run.checkpoint, run.evaluation, run.validation)
    assert report.verdict.outcome == "passed"
    assert report.model.name == "Tiny-Llama-6"
    assert report.model.source["repo"] == "example-org/Tiny-Llama-6"
    assert (report.method.scheme, report.method.details) == ("W4A16", "groups of 64, symmetric")
    assert report.method.format == "gptq"
    assert report.sizes.ratio == pytest.approx(269_060_552 / 121_634_816)
    assert "linears.json" not in report.sizes.files
    assert report.sizes.files == {
        name: run.checkpoint.files[name] for name in run.checkpoint.facts["checkpoint_files"]
    }
    assert report.evaluation is not None
    assert report.evaluation.perplexity_increase == pytest.approx(16.7655 / 15.3812 - 1)
    assert len(report.linears) == 42
    assert [(r.block, r.linear) for r in report.linears if r.damping_rose] == [(2, "mlp.down_proj")]
    assert report.calibration is not None and report.calibration.shipped
    assert report.recipe["quantization"]["weights"]["group_size"] == 64
    assert report.versions["quantlib"]


def test_what_a_step_that_runs_several_times_ran_for() -> None:
    def part(step: str, model: str = "merge", **parameters: object) -> str:
        inputs = {"model": SimpleNamespace(step=model)}
        return _part(SimpleNamespace(step=step, parameters=parameters, inputs=inputs))

    asked = {"task": "ifeval", "seed": 1}
    assert part("answers", "fetch", **asked) == "ifeval, original, seed 1"
    assert part("answers", **asked) == "ifeval, quantized, seed 1"
    assert (part("loads", "fetch"), part("loads")) == ("original", "quantized")
    assert part("text", name="prompts.jsonl") == "prompts.jsonl"
    assert part("calibrate") == ""


def test_steps_carry_time_memory_and_range(run) -> None:
    report = build_report(run.store, run.recipe, run.checkpoint, run.evaluation, run.validation)
    steps = [(step.step, step.range, step.seconds, step.peak_mib) for step in report.steps]
    assert steps == [
        ("fetch", None, 4.0, 120.0),
        ("plan", None, 0.5, 60.0),
        ("calibrate", None, 20.0, 640.0),
        ("smooth", None, 0.25, 61.0),
        ("quantize", "0:3", 30.0, 600.0),
        ("quantize", "3:6", 42.0, 600.0),
        ("merge", None, 3.0, 100.0),
        ("reference", None, 20.0, 1400.0),
        ("comparison", None, 30.0, 1400.0),
        ("validate", None, 50.0, 1400.0),
    ]
    # The quantize steps run at once: the slower one counts.
    assert report.longest_path_seconds == pytest.approx(4 + 0.5 + 20 + 0.25 + 42 + 3 + 30 + 50)


def test_a_method_without_calibration_leaves_no_text(make_run, tmp_path) -> None:
    run = make_run(tmp_path / "uncalibrated", text=None)
    report = build_report(run.store, run.recipe, run.checkpoint, None)
    assert report.calibration is None
    assert report.provenance.calibration_digest is None


def test_strengths_of_the_suppression_are_reported(make_run, run, tmp_path) -> None:
    alpha = [0.8, None, 0.55, 0.8, 0.8, 0.8]
    smoothed = make_run(
        tmp_path / "smoothed", suppression={"options": {"alpha": "auto"}}, alpha=alpha
    )
    method = build_report(smoothed.store, smoothed.recipe, smoothed.checkpoint, None).method
    assert method.outlier_suppression == "smooth_quant"
    assert method.alpha == tuple(alpha)
    assert list(method.alphas.items()) == [(0.55, 1), (0.8, 4)]
    plain = build_report(run.store, run.recipe, run.checkpoint, None).method
    assert (plain.outlier_suppression, plain.alpha, plain.alphas) == (None, None, {})


def test_steps_without_run_facts_are_reported_without_times(run) -> None:
    run.store.delete(f"{run.checkpoint.aside}/run.json")
    report = build_report(run.store, run.recipe, run.checkpoint, None)
    assert report.steps[-1].seconds is None
    assert report.longest_path_seconds is None


def test_provenance_chains_every_receipt(run, monkeypatch) -> None:
    monkeypatch.setenv("QUANTLIB_IMAGE", "example/quantlib@sha256:1234")
    report = build_report(run.store, run.recipe, run.checkpoint, run.evaluation, run.validation)
    provenance = report.provenance
    assert provenance.receipts[-1].digest == run.validation.digest()
    assert run.checkpoint.digest() in {receipt.digest for receipt in provenance.receipts}
    assert provenance.recipe_digest == run.recipe.digest()
    assert provenance.checkpoint_digest == run.checkpoint.facts["checkpoint_digest"]
    assert provenance.calibration_digest == "sha256:" + "ca" * 32
    assert provenance.image == "example/quantlib@sha256:1234"


def test_without_evaluation_the_report_says_so(run) -> None:
    report = build_report(run.store, run.recipe, run.checkpoint, None)
    assert report.verdict.outcome == "not_validated"
    assert report.evaluation is None
    assert report.steps[-1].step == "merge"


def test_json_round_trips_even_with_figures_that_are_no_numbers(run) -> None:
    evaluation = json.loads(json.dumps(run.evaluation))
    evaluation["quantized"]["perplexity"] = float("inf")
    report = build_report(run.store, run.recipe, run.checkpoint, evaluation)
    data = report.to_json()
    parsed = json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert parsed["schema"] == "quantlib/report/1"
    assert list(parsed)[1] == "verdict"
    assert parsed["evaluation"]["quantized"]["perplexity"] == "Infinity"
    assert Report.from_json(data) == report


def test_reader_refuses_what_is_no_report(run) -> None:
    report = build_report(run.store, run.recipe, run.checkpoint, None)
    data = json.loads(report.to_json())
    with pytest.raises(InvalidInputError, match="surprise"):
        Report.from_json(json.dumps(data | {"surprise": 1}))


def test_evaluation_with_unknown_keys_is_refused(run) -> None:
    with pytest.raises(InvalidInputError, match="rouge"):
        build_report(run.store, run.recipe, run.checkpoint, run.evaluation | {"rouge": 1})


def test_damaged_records_are_refused(run) -> None:
    path: Path = run.store.local_path(run.checkpoint.path("linears.json"))
    path.write_bytes(path.read_bytes().replace(b"0.01", b"0.00", 1))
    with pytest.raises(StoreError, match="sha256"):
        build_report(run.store, run.recipe, run.checkpoint, None)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"kind": "hub", "repo": "org/SmolLM2-135M"}, "SmolLM2-135M"),
        ({"kind": "gguf", "name": "my model (v2)"}, "my-model-v2"),
        ({"kind": "folder", "name": "../../etc"}, "etc"),
        ({"kind": "folder"}, "llama"),
        ({"kind": "folder", "name": ".."}, "llama"),
    ],
)
def test_model_name_is_fit_for_a_folder(source: dict[str, str], expected: str) -> None:
    assert model_name({"source": source, "model_type": "llama"}) == expected


def test_ranges_stand_as_they_follow_one_another() -> None:
    def receipt(step: str, span: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(step=step, parameters={"range": span} if span else {})

    spans = ["0:7", "15:22", "22:30", "7:15"]
    found = _in_order(
        [receipt("fetch"), *(receipt("quantize", s) for s in spans), receipt("merge")]
    )
    assert [each.parameters.get("range", each.step) for each in found] == [
        "fetch", "0:7", "7:15", "15:22", "22:30", "merge",
    ]  # fmt: skip
