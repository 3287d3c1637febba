"""A recipe as somebody chooses it in a form."""

from __future__ import annotations

import json
import re

import pytest

from quantlib.checks.recipe import load_recipe, parse_recipe
from quantlib.checks.recipe_choice import chosen_recipe, recipe_of, shipped_recipes
from quantlib.errors import InvalidInputError
from quantlib.schemes import SCHEMES, WeightScheme, name_of


def test_by_its_name() -> None:
    assert set(shipped_recipes()) >= {"awq", "gptq", "minmax"}
    for name in shipped_recipes():
        assert chosen_recipe(name) == load_recipe(name)


def test_as_text() -> None:
    text = "quantization:\n  method: awq\n"
    expected = parse_recipe({"quantization": {"method": "awq"}})
    assert chosen_recipe(text) == chosen_recipe(expected.canonical_json()) == expected


def test_one_of_a_teams_own_comes_before_one_that_ships() -> None:
    own = parse_recipe({"quantization": {"method": "minmax"}})
    recipes = {"gptq": own.canonical_json()}
    assert chosen_recipe("gptq", recipes=recipes) == own
    assert chosen_recipe("awq", recipes=recipes) == load_recipe("awq")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_takes_the_place_of_the_recipes(scheme: str) -> None:
    section = chosen_recipe("fp8", scheme).quantization
    bits = re.search(r"\d", scheme)
    assert bits is not None
    assert section.weights.bits == int(bits[0])
    assert (section.activations == "none") == ("A16" in scheme)
    assert (section.weights.type == "float") == ("FP" in scheme and scheme != "W4AFP8")
    assert section.weights.symmetric == (not scheme.endswith("ASYM"))
    settled = WeightScheme(**section.weights.model_dump())
    assert name_of(settled, section.activations) == scheme.removesuffix("_ASYM")


def test_changes_are_nested_as_the_recipe_is() -> None:
    changes = {"calibration": {"num_samples": 7}, "quantization": {"weights": {"group_size": 64}}}
    recipe, plain = chosen_recipe("gptq", changes=changes), load_recipe("gptq")
    assert recipe.calibration == plain.calibration.model_copy(update={"num_samples": 7})
    assert recipe.quantization.weights.group_size == 64
    assert recipe.quantization.weights.bits == plain.quantization.weights.bits


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "gptqq"}, "and no mapping; did you mean gptq?"),
        (
            {"recipe": "gptq", "scheme": "W3A16"},
            "scheme: 'W3A16' is no scheme; did you mean W8A16? known: W2A16",
        ),
        ({"recipe": "gptq", "recipe_changes": {"calibratoin": {}}}, "gptq: calibratoin"),
        ({"recipe": "gptq", "recipe_changes": {"quantization": 3}}, "gptq: quantization"),
        ({"recipe": json.dumps({"quantization": {"method": "gptqq"}})}, "unknown quantization"),
        ({"recipe": "{"}, "cannot be parsed"),
    ],
)
def test_what_is_none_is_named(given: dict, message: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        recipe_of(given)
    assert message in str(refused.value)
