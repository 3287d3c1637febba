"""Which group size a recipe that says ``auto`` gets on a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tomorrow import disguise

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.group_size import settle, why
from quantlib.checks.model import model_problems
from quantlib.checks.recipe import load_recipe, parse_recipe, recipe_from_text
from quantlib.errors import InvalidInputError
from quantlib.models import open_model
from quantlib.quantizers.gptq import GPTQQuantizer

ROOT = Path(__file__).parents[2]
MakeModel = Callable[..., Path]

WIDE = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "head_dim": 64}
SMOLLM2 = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
SHORT = {"calibration": {"sequence_length": 64}}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SAID = "group size {}: the largest of 128, 64, 32 that divides every linear's input; "


def settled(folder: Path, **quantization: Any) -> tuple[int, str]:
    serving = quantization.pop("serving", {})
    asked = parse_recipe({"quantization": quantization, "serving": serving})
    found = settle(asked, open_model(FolderSource(folder))[1])
    return found.recipe.quantization.weights.group_size, found.said


@pytest.mark.parametrize(
    ("shapes", "size", "said"),
    [
        (WIDE, 128, "group size 128: it divides every linear's input"),
        (
            SMOLLM2 | {"intermediate_size": 1536},
            64,
            SAID.format(64) + "128 does not divide model.layers.0.self_attn.q_proj (576)",
        ),
        (
            WIDE | {"intermediate_size": 352},
            32,
            SAID.format(32) + "64 does not divide model.layers.0.mlp.down_proj (352)",
        ),
    ],
)
def test_the_largest_that_divides_every_input(
    make_model: MakeModel, tmp_path: Path, shapes: dict[str, int], size: int, said: str
) -> None:
    assert settled(make_model(tmp_path / "model", num_hidden_layers=1, **shapes)) == (size, said)


def test_a_checkpoint_says_why_where_auto_would_choose_the_same(tiny_llama: Path) -> None:
    adapter = open_model(FolderSource(tiny_llama))[1]
    asked = parse_recipe({"quantization": {"weights": {"group_size": "auto"}}})
    said = settle(asked, adapter).said
    assert said
    by_number = [
        settle(parse_recipe({"quantization": {"weights": {"group_size": size}}}), adapter).recipe
        for size in (64, 32, 128)
    ]
    assert [why(recipe, adapter) for recipe in by_number] == [said, "", ""]
    section = {"method": "minmax", "weights": {"bits": 8, "group_size": -1}}
    channels = settle(parse_recipe({"quantization": section}), adapter).recipe
    assert why(channels, adapter) == ""


EXAMPLES = (
    "scripts/demo.yaml",
    "manifests/components/watch-argo/recipe.yaml",
    "manifests/components/watch-kubeflow/recipes/smollm2-w4.yaml",
)


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_recipes_for_smollm2_are_of_groups_of_64(
    make_model: MakeModel, tmp_path: Path, recipe: str
) -> None:
    shapes = SMOLLM2 | {"intermediate_size": 1536, "num_hidden_layers": 1}
    adapter = open_model(FolderSource(make_model(tmp_path / "model", **shapes)))[1]
    asked = load_recipe(str(ROOT / recipe))
    assert asked.quantization.weights.group_size == "auto"
    assert settle(asked, adapter).size == 64


def test_what_stays_exact_need_not_be_divided(tiny_llama: Path) -> None:
    assert settled(tiny_llama)[0] == 64
    others = [*ATTENTION, "gate_proj", "up_proj"]
    assert settled(tiny_llama, ignore=others)[0] == 128  # the 128 inputs of down_proj


def test_names_and_shapes_are_enough(tiny_llama: Path, tmp_path: Path) -> None:
    unknown = disguise(tiny_llama, tmp_path / "unknown")
    size, said = settled(unknown, method="minmax")
    assert size == 64
    assert said.endswith("128 does not divide core.blocks.0.mlp.gate_proj (64)")


def test_every_gpu_gets_whole_groups(
    tiny_llama: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    two = {"tensor_parallel_size": 2}
    expected = (
        SAID.format(32) + "64 does not divide the 32 inputs of o_proj that each of 2 GPUs gets"
    )
    assert settled(tiny_llama, serving=two) == (32, expected)
    assert settled(tiny_llama, serving=two, ignore=["o_proj"])[0] == 64
    narrow = open_model(FolderSource(make_model(tmp_path / "narrow", head_dim=16)))
    recipe = settle(parse_recipe(SHORT | {"serving": two}), narrow[1]).recipe
    (problem,) = model_problems(recipe, *narrow, validated=False)
    assert str(problem) == (
        "serving.tensor_parallel_size: 2 GPUs cannot share the model: each GPU would get 16 inputs "
        "of o_proj, which are no whole groups of 32; sizes that work: 1; group sizes that work "
        "with 2: -1"
    )


def test_no_size_that_fits_is_refused_by_the_linears(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(FolderSource(tiny_llama))
    for supported, remedy in (
        (
            (-1, 128),
            "sizes that fit: -1, or name them in quantization.ignore, or choose another scheme",
        ),
        ((128,), "name them in quantization.ignore, or choose another scheme"),
    ):
        monkeypatch.setattr(
            GPTQQuantizer, "get_supported_group_sizes", lambda sizes=supported: sizes
        )
        found = settle(
            parse_recipe(SHORT | {"quantization": {"ignore": ["gate_proj", "up_proj"]}}), opened[1]
        )
        assert found.said == ""
        (problem,) = model_problems(found.recipe, *opened, validated=False)
        assert str(problem) == (
            "quantization.weights.group_size: 128 does not divide self_attn.q_proj (64 columns), "
            "self_attn.k_proj (64 columns), self_attn.v_proj (64 columns), self_attn.o_proj "
            f"(64 columns); {remedy}"
        )


def test_only_sizes_that_the_format_holds_are_chosen_from(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """VLLM reads no asymmetric 8-bit weights in groups of 32."""
    folder = make_model(tmp_path / "model", **WIDE | {"num_hidden_layers": 1})
    weights = {"bits": 8, "symmetric": False}
    assert settled(folder, method="minmax", weights=weights)[0] == 128
    narrow = make_model(tmp_path / "narrow", num_hidden_layers=1, **WIDE | {"hidden_size": 96})
    assert settled(narrow, method="minmax")[0] == 32
    assert settled(narrow, method="minmax", weights=weights) == (64, "")


def test_a_scheme_without_groups_has_to_say_so() -> None:
    with pytest.raises(InvalidInputError, match=r"per channel \(group_size -1\)"):
        parse_recipe({"quantization": {"weights": {"bits": 8}, "activations": "int8"}})


def test_a_settled_recipe_is_the_one_with_the_number(tiny_llama: Path) -> None:
    adapter = open_model(FolderSource(tiny_llama))[1]
    for name in ("awq", "gptq"):
        assert load_recipe(name).quantization.weights.group_size == "auto"
        number = load_recipe(name, group_size=64)
        assert settle(number, adapter).said == ""
        assert settle(number, adapter).recipe == settle(load_recipe(name), adapter).recipe
        settled_number = number.model_dump() | {"outlier_suppression": None}
        assert settle(number, adapter).recipe.model_dump() == settled_number


def test_the_steps_after_the_plan_take_a_number() -> None:
    with pytest.raises(InvalidInputError, match="group_size: auto is settled by the plan step"):
        recipe_from_text(load_recipe("gptq").canonical_json())
    recipe = recipe_from_text(load_recipe("gptq", group_size=64).canonical_json())
    assert recipe.quantization.weights.group_size == 64
