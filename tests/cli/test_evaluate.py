"""``quantlib evaluate``: checkpoints that are there already, judged as the validate step judges."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command
from safetensors.torch import load_file, save_file

from quantlib.report.method import ForeignMethod
from quantlib.report.model import Report

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_engines")]

THRESHOLDS = {"max_perplexity_increase": 1.0, "max_kl_mean": 1.0, "min_top1_agreement": 0.2}
VALIDATION = {
    "engine": "transformers",
    "num_samples": 4,
    "sequence_length": 64,
    "prompts": ["The engine"],
    "max_new_tokens": 4,
    "answer_tokens": 4,
    "thresholds": THRESHOLDS,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.json"
    weights = {"bits": 4, "group_size": 32}
    calibration = {"num_samples": 8, "sequence_length": 64}
    path.write_text(
        json.dumps(
            {
                "quantization": {"weights": weights, "format": "compressed-tensors"},
                "calibration": calibration,
                "validation": VALIDATION,
            }
        )
    )
    return path


@pytest.fixture(scope="module")
def checkpoint(tiny_llama: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that quantlib wrote, and validated."""
    from click.testing import CliRunner

    from quantlib.cli import cli

    output = tmp_path_factory.mktemp("made") / "out"
    arguments = ["quantize", "--model", tiny_llama, "--output", output, "--recipe", recipe]
    done = CliRunner().invoke(cli, [*map(str, arguments), "--validate", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    return output


@pytest.fixture
def evaluate(
    quantlib: Command, tiny_llama: Path, recipe: Path, tmp_path: Path
) -> Callable[..., Any]:
    def run(checkpoint: Path, *options: object, original: Path = tiny_llama) -> Any:
        return quantlib(
            "evaluate", original, checkpoint, "--recipe", recipe,
            "--device", "cpu", "--store", tmp_path / "store", *map(str, options),
        )  # fmt: skip

    return run


def figures(report: Report) -> tuple[float, ...]:
    made = report.evaluation
    assert made is not None
    return (
        made.original.perplexity,
        made.quantized.perplexity,
        made.kl_mean,
        made.kl_standard_error,
        made.top1_agreement,
    )


def read(folder: Path) -> Report:
    return Report.from_json((folder / "quantization_report.json").read_bytes())


def test_a_checkpoint_of_ours_gets_the_figures_that_validate_gave(
    evaluate: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    done = evaluate(checkpoint, "--output", tmp_path / "judged", "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found, given, judged = json.loads(done.stdout), read(checkpoint), read(tmp_path / "judged")
    assert found["schema"] == "quantlib/evaluate/1"
    assert found["verdict"] == "passed"
    assert found["checkpoint"] == given.provenance.checkpoint_digest
    assert found["report"] == str(tmp_path / "judged" / "quantization_report.html")
    assert figures(judged) == figures(given)
    assert found["figures"]["kl_mean"] == figures(given)[2]
    assert judged.evaluation is not None and given.evaluation is not None
    assert judged.evaluation.gate == given.evaluation.gate
    assert judged.method == given.method
    assert judged.calibration == given.calibration
    assert judged.linears == given.linears
    assert judged.model.quantized_blocks == given.model.quantized_blocks


def test_a_checkpoint_of_others_is_judged_by_what_its_config_says(
    evaluate: Callable[..., Any], quantlib: Command, checkpoint: Path, tmp_path: Path
) -> None:
    foreign = shutil.copytree(checkpoint, tmp_path / "foreign")
    for name in ("quantization_report.json", "quantization_report.html", "vllm_config.json"):
        (foreign / name).unlink()
    done = evaluate(foreign, "--output", tmp_path / "judged")
    assert done.returncode == 0, done.stderr
    judged = read(tmp_path / "judged")
    assert isinstance(judged.method, ForeignMethod)
    assert judged.method.words.startswith("compressed-tensors")
    assert judged.model.quantized_blocks == (0, 1, 2, 3)
    assert set(judged.recipe) == {"validation"}
    assert "transformers judges, which has no kernels for it" in judged.verdict.reason
    # The dequantized weights are rounded to bfloat16 once more.
    assert figures(judged) == pytest.approx(figures(read(checkpoint)), rel=0.02)
    page = (tmp_path / "judged" / "quantization_report.html").read_text()
    assert f"Made elsewhere: {judged.method.words}." in page
    assert "Error of every linear" not in page
    done = quantlib("compare", checkpoint, tmp_path / "judged", "--output", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert "made elsewhere" in done.stdout


@pytest.fixture
def worse(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint, with the scales of rows exchanged."""
    folder = shutil.copytree(checkpoint, tmp_path / "worse")
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith("weight_scale"):
                tensors[name] = torch.flip(tensor, [0])
        save_file(tensors, path)
    return folder


def test_several_are_judged_on_one_text_and_the_first_decides(
    evaluate: Callable[..., Any], checkpoint: Path, worse: Path, tmp_path: Path
) -> None:
    output = tmp_path / "judged"
    done = evaluate(checkpoint, "--baseline", worse, "--output", output, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "passed"
    first, second = found["comparison"]["runs"]
    assert (first["name"], second["name"]) == (checkpoint.name, "worse")
    assert (first["verdict"], second["verdict"]) == ("passed", "regression")
    assert first["kl_mean"] == found["figures"]["kl_mean"] < second["kl_mean"]
    assert first["perplexity_original"] == second["perplexity_original"]
    assert found["comparison"]["unfair"] == []
    assert found["comparison"]["take"] == ["A"]
    assert first["seconds"] is None  # nothing was quantized
    assert read(output).provenance.checkpoint_digest == found["checkpoint"]
    page = (output / "comparison.html").read_text()
    assert found["comparison"]["page"] == str(output / "comparison.html")
    assert "it alone passed the gate" in page

    done = evaluate(worse, "--baseline", checkpoint)
    assert done.returncode == 3
    assert f"A {worse.name}" in done.stdout and f"B {checkpoint.name}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(
        f"conclusion: Take B ({checkpoint.name}): it alone passed the gate, with "
    )


def test_a_baseline_that_is_no_checkpoint_is_refused_before_anything_is_judged(
    evaluate: Callable[..., Any], checkpoint: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    done = evaluate(checkpoint, "--baseline", tiny_llama)
    assert done.returncode == 2
    assert f"{tiny_llama}: is not quantized" in done.stderr
    assert not list((tmp_path / "store").glob("**/reference*"))


def test_a_worse_checkpoint_is_refused_with_3(
    evaluate: Callable[..., Any], checkpoint: Path, worse: Path
) -> None:
    done = evaluate(worse, "--json")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("error: refused by the gate: ")
    found = json.loads(done.stdout)
    assert found["verdict"] == "regression"
    # Its report is of other files, so that nothing is taken from it.
    assert found["checkpoint"] != read(checkpoint).provenance.checkpoint_digest


def test_what_cannot_be_judged_is_refused(
    evaluate: Callable[..., Any],
    checkpoint: Path,
    tiny_llama: Path,
    make_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    longer = make_model(tmp_path / "longer", num_hidden_layers=5)
    for model, original, options, message in (
        (tmp_path / "none", tiny_llama, [], "there is no such folder"),
        (checkpoint, tmp_path / "none", [], "there is no such folder"),
        (tiny_llama, tiny_llama, [], "is not quantized; give a quantized checkpoint as the model"),
        (checkpoint, longer, [], "has num_hidden_layers 4, the original has 5"),
        (checkpoint, tiny_llama, ["--num-samples", 0], "validation.num_samples"),
        (checkpoint, tiny_llama, ["--device", "tpu"], "unknown"),
        (checkpoint, tiny_llama, ["--gpus", 2], "transformers runs a model on one GPU"),
    ):
        done = evaluate(model, *options, original=original)
        assert done.returncode == 2, message
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
def test_vllm_judges_what_it_serves(
    evaluate: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    foreign = shutil.copytree(checkpoint, tmp_path / "foreign")
    (foreign / "quantization_report.json").unlink()
    for model in (checkpoint, foreign):
        output = tmp_path / "judged" / model.name
        done = evaluate(model, "--engine", "vllm", "--output", output)
        assert done.returncode == 0, done.stderr
    ours, others = (read(tmp_path / "judged" / name) for name in ("out", "foreign"))
    assert ours.evaluation is not None and ours.evaluation.engine == "vllm"
    assert others.evaluation is not None
    assert others.evaluation.checkpoint_dequantized_reason is None
    assert figures(ours) == figures(others)
