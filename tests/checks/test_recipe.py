import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantlib.checks.recipe import asked_from_text, load_recipe, parse_recipe, recipe_from_text
from quantlib.checks.scheme import provisional_section, resolve_format
from quantlib.errors import InvalidInputError
from quantlib.recipe import SHIPPED_RECIPES, Recipe


def problems(data: dict) -> list[str]:
    with pytest.raises(InvalidInputError) as caught:
        parse_recipe(data, origin="r.yaml")
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("path", sorted(SHIPPED_RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert load_recipe(path) == load_recipe(path.stem)


def test_all_faults_at_once_each_with_its_path() -> None:
    found = problems(
        {
            "quantisation": {},
            "quantization": {
                "method": "gtpq",
                "weights": {"bits": 99, "group_size": 0},
                "options": {"dampening": 1},
            },
            "calibration": {"num_samples": 0},
            "validation": {"thresholds": {"min_top1_agreement": 1.5, "max_kl_mean": -1}},
            "outlier_suppression": {"method": "smooth_quant", "options": {"alpha": 2}},
        }
    )
    for path in (
        "quantisation: unknown key",
        "quantization.method: unknown quantization method 'gtpq'; known: awq, gptq, hqq, minmax",
        "quantization.weights.bits",
        "quantization.weights.group_size",
        "calibration.num_samples",
        "validation.thresholds.min_top1_agreement",
        "validation.thresholds.max_kl_mean",
        "outlier_suppression.options.alpha",
    ):
        assert any(f"r.yaml: {path}" in line for line in found), path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "best"}, "alpha: must be a number from 0 to 1, a list of such numbers, one per"),
        ({"alpha": [0.5, 2]}, "or auto (given: [0.5, 2])"),
        ({"pairs": []}, "pairs: names none; leave it out for norms"),
        ({"pairs": ["down"]}, "pairs.0: Input should be 'norms', 'value_output' or 'up_down'"),
        ({"strength": 1}, "strength: unknown option; known: alpha, pairs"),
    ],
)
def test_options_of_a_suppressor_are_refused_with_their_path(options: dict, message: str) -> None:
    (found,) = problems({"outlier_suppression": {"method": "smooth_quant", "options": options}})
    assert "outlier_suppression.options." in found
    assert message in found


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"weights": {"bits": 3}}, "gptq does not support 3; supported: 2, 4, 8"),
        ({"weights": {"group_size": 48}}, "does not support 48"),
        ({"ignore": ["re:("]}, "quantization.ignore: 're:(' is no regular expression: missing )"),
        ({"weights": {"group_size": 0}}, "must be auto, -1 (per channel) or a positive number"),
        ({"weights": {"group_size": "large"}}, "number of columns (given: 'large')"),
        ({"format": "gptq", "weights": {"symmetric": False}}, "symmetric weights only"),
        ({"format": "gptq", "activations": "int8"}, "weights only"),
        ({"activations": "int8-static"}, "int8-static activations go with weights of 8 bits"),
        (
            {"activations": "int8", "weights": {"symmetric": False}},
            "int8 activations go with symmetric weights",
        ),
        (
            {"activations": "fp8", "weights": {"group_size": 64}},
            "4-bit weights with FP8 activations in groups of 128 only",
        ),
        ({"weights": {"bits": 2, "symmetric": False}}, "2 bits for symmetric weights only"),
        ({"method": "awq", "weights": {"bits": 8}}, "awq does not support 8; supported: 4"),
        ({"method": "awq", "weights": {"group_size": -1}}, "does not support -1; supported: 16"),
        ({"method": "minmax", "format": "awq", "weights": {"bits": 8}}, "for 4 bits, not 8"),
        ({"format": "awq", "weights": {"group_size": -1}}, "for group sizes (32, 64, 128), not -1"),
        ({"method": "minmax", "format": "awq", "activations": "int8"}, "holds weights only"),
        ({"method": "awq", "options": {"scaling": "all"}}, "quantization.options.scaling"),
        ({"format": "ggml"}, "known: awq, compressed_tensors, gptq"),
        ({"format": "compressed"}, "quantization.format: unknown checkpoint format 'compressed'"),
        ({"method": "gptqq"}, "did you mean gptq?"),
        (
            {
                "weights": {"type": "float", "group_size": 64, "scale": "e4m3"},
                "activations": "nvfp4",
            },
            "NVFP4 has groups of 16: leave group_size out",
        ),
        (
            {"weights": {"type": "float", "bits": 8, "group_size": 64}, "activations": "fp8"},
            "FP8_DYNAMIC has one scale per channel: leave group_size out",
        ),
        ({"weights": {"type": "float", "bits": 6}}, "the type float does not support 6"),
        ({"activations": "nvfp"}, "is no kind of activations; did you mean nvfp4? known: none"),
        ({"options": {"damping": 0}}, "quantization.options.damping"),
        ({"options": {"act_order": "group"}}, "act_order: group sorts columns into groups, which"),
        ({"options": {"act_order": "group"}}, "static keeps the order of importance without one"),
        ({"method": "minmax", "options": {"damping": 0.1}}, "unknown option; known: none"),
        ({"layers": []}, "names no block"),
        ({"layers": [-1]}, "quantization.layers.0"),
    ],
)
def test_what_does_not_go_together(quantization: dict, message: str) -> None:
    found = problems({"quantization": quantization})
    assert any(message in line for line in found)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({}, "gptq"),
        ({"weights": {"symmetric": False}}, "compressed-tensors"),
        ({"method": "minmax"}, "compressed-tensors"),
        ({"method": "awq"}, "awq"),
        ({"method": "awq", "weights": {"symmetric": False, "group_size": 32}}, "awq"),
        ({"method": "minmax", "format": "awq"}, "awq"),
    ],
)
def test_the_format_follows_from_the_method_and_the_scheme(
    quantization: dict, expected: str
) -> None:
    section = parse_recipe({"quantization": quantization}).quantization
    assert resolve_format(provisional_section(section)) == expected


def test_yaml_json_and_text_give_the_same_recipe(tmp_path: Path) -> None:
    data = {"quantization": {"weights": {"group_size": 64}}, "num_ranges": 3}
    (tmp_path / "r.json").write_text(json.dumps(data))
    (tmp_path / "r.yaml").write_text("quantization: {weights: {group_size: 64}}\nnum_ranges: 3\n")
    recipe = load_recipe(tmp_path / "r.json")
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert asked_from_text(recipe.canonical_json()) == recipe
    settled = recipe_from_text(recipe.canonical_json())
    assert settled.model_dump() == recipe.model_dump() | {"outlier_suppression": None}
    assert recipe_from_text(settled.canonical_json()) == settled
    assert recipe.digest() == parse_recipe(data).digest() != Recipe().digest()


def test_layers_are_sorted_and_unique() -> None:
    assert parse_recipe({"quantization": {"layers": [2, 0, 2]}}).quantization.layers == (0, 2)


def test_recipes_are_checked_without_torch() -> None:
    script = (
        "import sys; from quantlib.checks.recipe import load_recipe; load_recipe('gptq');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'kfp')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("given", "where", "meant"),
    [
        ({"quantization": {"metod": "gptq"}}, "quantization.metod", "quantization.method"),
        ({"thresholds": {}}, "thresholds", "validation.thresholds"),
        (
            {"calibration": {"group_size": 64}},
            "calibration.group_size",
            "quantization.weights.group_size",
        ),
        ({"validation": {"num_sample": 4}}, "validation.num_sample", "validation.num_samples"),
        ({"calibration": {"num_sample": 4}}, "calibration.num_sample", "calibration.num_samples"),
        ({"xyz": 1}, "xyz", None),
    ],
)
def test_an_unknown_key_gets_a_suggestion(
    given: dict[str, Any], where: str, meant: str | None
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_recipe(given)
    (problem,) = caught.value.problems
    remedy = f"; did you mean {meant}?" if meant else ""
    assert str(problem) == f"recipe: {where}: unknown key{remedy}"


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match=r"gtpq: there is no such file, and no recipe .* gptq\?"
    ):
        load_recipe("gtpq")
    with pytest.raises(InvalidInputError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "gptq.yaml")


def test_the_group_size_can_be_given_beside_a_recipe(tmp_path: Path) -> None:
    assert load_recipe("gptq", group_size=64).quantization.weights.group_size == 64
    assert load_recipe("gptq", group_size=64).quantization.method == "gptq"
    (tmp_path / "r.yaml").write_text("num_ranges: 2")
    assert load_recipe(tmp_path / "r.yaml", group_size=-1).quantization.weights.group_size == -1
