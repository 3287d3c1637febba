"""The validate step, with the transformers engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.evaluation.answers import QUESTIONS
from quantlib.evaluation.runs import ANSWERS_NAME, LOG_NAME
from quantlib.report.build import build_report
from quantlib.report.evaluation import Evaluation
from quantlib.report.html import render_html
from quantlib.report.model import Report
from quantlib.steps.contract import StepCall
from quantlib.steps.rounding import round_model, rounding_recipe
from quantlib.steps.texts import input_of
from quantlib.steps.validate import EVALUATION_NAME, main, read_evaluation, validate
from quantlib.store import LocalStore, commit_step, read_lineage, run_facts

pytestmark = pytest.mark.slow

LENIENT = {"max_perplexity_increase": 1.0, "max_kl_mean": 1.0, "min_top1_agreement": 0.2}
STRICT = LENIENT | {"max_kl_mean": 1e-6}


@pytest.fixture(scope="module")
def made(
    tiny_llama: Path, small_recipe: Any, run_steps: Any, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    store = LocalStore(tmp_path_factory.mktemp("store"))
    return run_steps(store, recipe_with(small_recipe, LENIENT), tiny_llama)


def recipe_with(small_recipe: Any, thresholds: dict[str, float]) -> Any:
    return small_recipe(
        validation={
            "engine": "transformers",
            "max_new_tokens": 5,
            "prompts": ["A first prompt", "and another"],
            "thresholds": thresholds,
        }
    )


@pytest.fixture(scope="module")
def passed(made: Any) -> Any:
    return validate(made.store, made.recipe, made.model, made.plan, made.checkpoint, "cpu")


def test_facts_and_evaluation_agree(made: Any, passed: Any) -> None:
    evaluation = read_evaluation(made.store, passed)
    assert passed.facts["verdict"] == "passed"
    assert passed.facts["reason"] == evaluation["gate"]["reason"]
    for name in ("kl_mean", "kl_standard_error", "top1_agreement", "engine", "device"):
        assert passed.facts[name] == evaluation[name]
    original, quantized = evaluation["original"], evaluation["quantized"]
    assert passed.facts["perplexity_original"] == original["perplexity"]
    assert passed.facts["perplexity_quantized"] == quantized["perplexity"]
    assert 1e-5 < evaluation["kl_mean"] < 1.0
    assert evaluation["text"]["tokens"] == 4 * 64
    assert "whole vocabulary of 512 tokens, at each of the 63 positions" in evaluation["kl_method"]
    assert [each["prompt"] for each in evaluation["generations"]] == [
        "A first prompt",
        "and another",
    ]
    Evaluation.model_validate(evaluation)


def test_throughput_is_measured_but_no_part_of_the_receipt(made: Any, passed: Any) -> None:
    evaluation = read_evaluation(made.store, passed)
    assert evaluation["original"]["tokens_per_second"] > 0
    assert evaluation["quantized"]["tokens_per_second"] > 0
    hashed = json.loads(bytes(made.store.read(passed.path(EVALUATION_NAME))))
    assert hashed["original"]["tokens_per_second"] is None
    assert hashed["quantized"]["tokens_per_second"] is None
    assert set(passed.files) == {EVALUATION_NAME}


def test_another_gate_runs_neither_the_original_nor_ends_in_an_error(
    made: Any, passed: Any, small_recipe: Any
) -> None:
    recipe = recipe_with(small_recipe, STRICT)
    receipt = validate(made.store, recipe, made.model, made.plan, made.checkpoint, "cpu")
    assert receipt.facts["verdict"] == "regression"
    assert "above 1e-06" in receipt.facts["reason"]
    references = {
        step.digest()
        for each in (passed, receipt)
        for step in read_lineage(made.store, each)
        if step.step == "reference"
    }
    assert len(references) == 1
    assert receipt.facts["kl_mean"] == passed.facts["kl_mean"]


def test_what_is_open_is_judged_on_more_text_up_to_the_most(
    made: Any, passed: Any, small_recipe: Any
) -> None:
    # At the mean itself no sample tells on which side it lies.
    recipe = recipe_with(small_recipe, LENIENT | {"max_kl_mean": passed.facts["kl_mean"]})
    validation = recipe.validation.model_copy(update={"max_samples": 12})
    recipe = recipe.model_copy(update={"validation": validation})
    receipt = validate(made.store, recipe, made.model, made.plan, made.checkpoint, "cpu")
    evaluation = read_evaluation(made.store, receipt)
    read = {
        name: each.parameters["windows"]
        for name in ("comparison", "comparison 2")
        if (each := input_of(made.store, receipt, name))
    }
    assert read == {"comparison": [0, 4], "comparison 2": [4, 8]}
    assert receipt.inputs["comparison"] == passed.inputs["comparison"]
    assert evaluation["text"]["windows"] > 4
    assert evaluation["generations"] == read_evaluation(made.store, passed)["generations"]
    if receipt.facts["verdict"] == "inconclusive":
        assert evaluation["text"]["windows"] == 12
        assert "12 windows of text do not tell" in receipt.facts["reason"]
    Evaluation.model_validate(evaluation)


def test_plain_rounding_is_judged_beside_and_once_for_all_methods(
    made: Any, small_recipe: Any
) -> None:
    recipe = recipe_with(small_recipe, LENIENT | {"max_times_rounding": 50})
    receipt = validate(made.store, recipe, made.model, made.plan, made.checkpoint, "cpu")
    evaluation = Evaluation.model_validate(read_evaluation(made.store, receipt))
    assert evaluation.rounding is not None
    assert evaluation.rounding.kl_mean == receipt.facts["kl_rounding"]
    check = next(check for check in evaluation.gate.checks if check.name == "times_rounding")
    assert check.value == pytest.approx(evaluation.kl_mean / receipt.facts["kl_rounding"])
    assert check.limit == 50
    assert {each.step for each in read_lineage(made.store, receipt)} >= {"rounding", "comparison"}
    # What was rounded is no part of how the checkpoint was made.
    methods = {
        each.parameters["quantization"]["method"]
        for each in read_lineage(made.store, receipt)
        if each.step == "quantize"
    }
    assert methods == {"gptq"}
    section = recipe.quantization.model_copy(update={"method": "hqq", "format": "gptq"})
    other = rounding_recipe(recipe.model_copy(update={"quantization": section}))
    assert other.quantization.method == "minmax"
    rounded = round_model(made.store, other, made.model, made.plan, "cpu")
    assert rounded is not None
    assert (
        rounded.facts["checkpoint_digest"]
        == (input_of(made.store, receipt, "rounding").parameters["rounded"])
    )


def test_rounding_is_left_out_where_scales_come_from_text(made: Any, small_recipe: Any) -> None:
    static = small_recipe(
        quantization={
            "method": "gptq",
            "activations": "int8-static",
            "weights": {"bits": 8, "group_size": -1},
        }
    )
    assert round_model(made.store, static, made.model, made.plan, "cpu") is None


def test_a_config_that_is_not_the_originals_breaks_a_checkpoint(
    made: Any, passed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads(bytes(made.store.read(made.checkpoint.path("config.json"))))

    def work(output: Any) -> None:
        for name, record in made.checkpoint.files.items():
            output.add_reference(name, record)
        scaling = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
        output.add_json("config.json", {**config, "rope_parameters": None, **scaling})
        output.facts = dict(made.checkpoint.facts)

    altered = commit_step(made.store, "merge", {"altered": True}, {"model": made.model}, work)
    receipt = validate(made.store, made.recipe, made.model, made.plan, altered, "cpu")
    assert receipt.facts["verdict"] == "broken"
    assert "config.json: rope_" in receipt.facts["reason"]
    assert "broken: config.json: rope_" in capsys.readouterr().err
    assert receipt.facts["kl_mean"] > passed.facts["kl_mean"]
    gate = read_evaluation(made.store, receipt)["gate"]
    assert (gate["outcome"], len(gate["broken"]) > 0) == ("broken", True)


def test_both_models_answer_questions(made: Any, passed: Any) -> None:
    for name in ("reference", "comparison"):
        half = input_of(made.store, passed, name)
        answers = json.loads(bytes(made.store.read(half.path(ANSWERS_NAME))))
        assert len(answers) == len(QUESTIONS)
        assert all(0 < len(each) <= 8 for each in answers)


def test_a_validation_is_not_repeated(made: Any, passed: Any) -> None:
    before = run_facts(made.store, passed)
    again = validate(made.store, made.recipe, made.model, made.plan, made.checkpoint, "cpu")
    assert again == passed
    assert run_facts(made.store, again) == before


def test_the_step_writes_verdict_metrics_and_report(made: Any, passed: Any, tmp_path: Path) -> None:
    inputs = {}
    given = {"model": made.model, "plan": made.plan, "checkpoint": made.checkpoint}
    for name, receipt in given.items():
        (tmp_path / name).write_bytes(receipt.to_json())
        inputs[name] = {"artifacts": [{"name": name, "uri": str(tmp_path / name)}]}
    outputs = {
        name: {"artifacts": [{"name": name, "uri": str(tmp_path / name)}]}
        for name in ("validation", "validate_summary", "metrics", "report")
    }
    call = StepCall.parse(
        json.dumps(
            {
                "inputs": {
                    "parameterValues": {
                        "recipe": made.recipe.canonical_json(),
                        "store": made.store.address,
                        "device": "cpu",
                        "gpus": "0",
                    },
                    "artifacts": inputs,
                },
                "outputs": {
                    "parameters": {
                        name: {"outputFile": str(tmp_path / name)} for name in ("verdict", "reason")
                    },
                    "artifacts": outputs,
                    "outputFile": str(tmp_path / "output.json"),
                },
            }
        )
    )
    main(call)
    call.finish()
    assert (tmp_path / "verdict").read_text() == "passed"
    assert (tmp_path / "reason").read_text() == passed.facts["reason"]
    assert "- **verdict**: passed\n" in (tmp_path / "validate_summary").read_text()
    assert (tmp_path / "validation").read_bytes() == passed.to_json()
    assert "<html" in (tmp_path / "report").read_text()
    beside = Report.from_json((tmp_path / "quantization_report.json").read_bytes())
    assert beside.evaluation is not None
    assert beside.evaluation.kl_mean == passed.facts["kl_mean"]
    written = json.loads((tmp_path / "output.json").read_text())["artifacts"]
    metrics = written["metrics"]["artifacts"][0]["metadata"]
    assert metrics["kl_mean"] == passed.facts["kl_mean"]
    assert all(isinstance(value, float) for value in metrics.values())


def test_a_failed_engine_keeps_its_log_and_commits_nothing(
    made: Any, passed: Any, small_recipe: Any
) -> None:
    broken = made.checkpoint.model_copy(
        update={
            "facts": made.checkpoint.facts | {"checkpoint_files": ["config.json", "tokenizer.json"]}
        }
    )
    with pytest.raises(QuantlibError, match="quantized by transformers: the engine failed"):
        validate(made.store, made.recipe, made.model, made.plan, broken, "cpu")
    logs = [
        file.path
        for file in made.store.list("runs/comparison")
        if file.path.endswith(LOG_NAME)
        and not made.store.exists(f"steps/comparison/{file.path.split('/')[2]}.json")
    ]
    assert len(logs) == 1
    assert b"Traceback" in bytes(made.store.read(logs[0])) or b"Error" in bytes(
        made.store.read(logs[0])
    )


def test_transformers_is_refused_for_several_gpus(made: Any) -> None:
    def references() -> int:
        return len(list(made.store.list("steps/reference")))

    before = references()
    with pytest.raises(
        InvalidInputError, match=r"validation\.engine: transformers runs a model on"
    ):
        validate(made.store, made.recipe, made.model, made.plan, made.checkpoint, "cpu", gpus=2)
    assert references() == before


def test_an_original_that_is_read_block_by_block_gives_the_same_figures(
    made: Any, passed: Any, small_recipe: Any
) -> None:
    recipe = recipe_with(small_recipe, LENIENT)
    section = recipe.validation.model_copy(update={"reference": "streamed"})
    recipe = recipe.model_copy(update={"validation": section})
    receipt = validate(made.store, recipe, made.model, made.plan, made.checkpoint, "cpu")
    evaluation = read_evaluation(made.store, receipt)
    for name in ("kl_mean", "perplexity_original", "perplexity_quantized"):
        # transformers runs whole models in float32, and the walk in what this CPU multiplies.
        assert receipt.facts[name] == pytest.approx(passed.facts[name], rel=0.02)
    assert [each["original"] for each in evaluation["generations"]] == [None, None]
    assert all(each["quantized"] for each in evaluation["generations"])
    assert evaluation["original"]["tokens_per_second"] is None
    assert "one block in memory at a time" in evaluation["original_streamed"]
    page = render_html(
        build_report(made.store, recipe, made.checkpoint, evaluation, receipt, made.plan)
    )
    assert "read block by block, which completes nothing" in page
    assert '<p class="label">Original</p>' not in page
