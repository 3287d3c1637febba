from collections.abc import Callable
from pathlib import Path

import pytest
import zoo
from problems import input_problems
from safetensors.torch import load_file, save_file

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.linears import exact_linears
from quantlib.checks.model import model_problems
from quantlib.errors import InvalidInputError
from quantlib.models import open_model
from quantlib.planning import find_hardware
from quantlib.recipe import Recipe
from quantlib.schemes import LinearScheme, WeightScheme
from quantlib.steps.fetch import fetch
from quantlib.steps.plan import parse_range, plan, plan_ranges, serving_lines
from quantlib.steps.texts import bring_texts
from quantlib.store import LocalStore
from quantlib.store.transaction import run_facts

MakeRecipe = Callable[..., Recipe]


def ranges_of(folder: Path, recipe: Recipe, wanted: int) -> list[tuple[int, int]]:
    _, adapter = open_model(FolderSource(folder))
    return plan_ranges(recipe, adapter, wanted)


@pytest.mark.parametrize(
    ("layers", "wanted", "expected"),
    [
        (None, 1, [(0, 4)]),
        (None, 2, [(0, 2), (2, 4)]),
        (None, 4, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (None, 64, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ([1, 3], 1, [(1, 4)]),
        ([1, 3], 2, [(1, 3), (3, 4)]),
        ([2], 3, [(2, 3)]),
    ],
)
def test_ranges(
    tiny_llama: Path,
    small_recipe: MakeRecipe,
    layers: list[int] | None,
    wanted: int,
    expected: list[tuple[int, int]],
) -> None:
    recipe = small_recipe(quantization={"layers": layers})
    assert ranges_of(tiny_llama, recipe, wanted) == expected


def test_ranges_are_balanced_by_parameters(tiny_llama: Path, small_recipe: MakeRecipe) -> None:
    """Blocks of which only one linear is quantized weigh little."""
    recipe = small_recipe(quantization={"ignore": [r"re:layers\.[01]\..*(gate|up|down|o)_proj"]})
    assert ranges_of(tiny_llama, recipe, 2) == [(0, 3), (3, 4)]


def test_the_receipt_lists_ranges_as_strings(
    store: LocalStore, tiny_llama: Path, small_recipe: MakeRecipe
) -> None:
    recipe, model = small_recipe(num_ranges=2), fetch(store, str(tiny_llama))
    texts = bring_texts(store, recipe)
    assert plan(store, recipe, model, texts, 0).facts["ranges"] == ["0:2", "2:4"]
    assert plan(store, recipe, model, texts, 1).facts["ranges"] == ["0:4"]


def test_a_group_size_that_is_settled_gives_the_receipt_of_the_number(
    store: LocalStore, tiny_llama: Path, small_recipe: MakeRecipe
) -> None:
    auto, number = (
        small_recipe(quantization={"weights": {"bits": 4, "group_size": size}})
        for size in ("auto", 64)
    )
    model, texts = fetch(store, str(tiny_llama)), bring_texts(store, auto)
    planned = plan(store, auto, model, texts, 1)
    assert run_facts(store, planned)["remarks"][0] == (
        "group size 64: the largest of 128, 64, 32 that divides every linear's input; 128 does "
        "not divide model.layers.0.self_attn.q_proj (64)."
    )
    assert plan(store, number, model, texts, 1) == planned


def test_a_head_that_the_config_ties_away_is_refused(
    store: LocalStore, make_model: Callable[..., Path], small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m", tie_word_embeddings=False)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('_embeddings": false', '_embeddings": true'))
    recipe = small_recipe()
    texts = bring_texts(store, recipe)
    with pytest.raises(InvalidInputError, match=r"lm_head\.weight: differs from"):
        plan(store, recipe, fetch(store, str(folder)), texts, 1)
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, folder / "model.safetensors")
    assert plan(store, recipe, fetch(store, str(folder)), texts, 1).facts["ranges"] == ["0:4"]


@pytest.mark.parametrize("text", ["", "3", "4:4", "5:2", "a:b", "-1:2", "1:2:3"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInputError, match="start:stop"):
        parse_range(text)
    assert parse_range("2:10") == (2, 10)


def test_all_problems_at_once(tiny_llama: Path, small_recipe: MakeRecipe) -> None:
    recipe = small_recipe(
        quantization={
            "weights": {"group_size": 128},
            "layers": [1, 7],
            "ignore": ["wo_proj"],
        },
        calibration={"sequence_length": 512, "dataset": "missing.txt"},
        validation={"num_samples": 100000},
    )
    found = "\n".join(map(str, input_problems(recipe, FolderSource(tiny_llama))))
    for message in (
        "quantization.layers: 7 out of range; the model has blocks 0 to 3",
        "'wo_proj' matches no linear",
        "group_size: 128 does not divide self_attn.q_proj (64 columns), self_attn.k_proj",
        "sizes that fit: -1, 32, 64",
        "calibration.sequence_length: 512 is above the model's 256",
        "missing.txt: there is no such file",
        "but 100000 samples of 64 tokens need 6400000",
    ):
        assert message in found


@pytest.mark.parametrize(
    "pattern",
    ["lm_head", "re:.*lm_head", "re:lm_head$", "model.embed_tokens", "re:.*embed.*", "re:.*norm$"],
)
def test_what_is_never_quantized_may_be_named(
    tiny_llama: Path, small_recipe: MakeRecipe, pattern: str
) -> None:
    recipe = small_recipe(quantization={"ignore": [pattern]})
    assert input_problems(recipe, FolderSource(tiny_llama)) == []


def test_a_pattern_that_matches_nothing_says_what_was_looked_at(
    tiny_llama: Path, small_recipe: MakeRecipe
) -> None:
    recipe = small_recipe(quantization={"ignore": ["re:.*mlp.gate$"]})
    (problem,) = input_problems(recipe, FolderSource(tiny_llama))
    assert (
        "matches no linear and no other module of the model (looked at 39 names, from "
        "model.layers.0.self_attn.q_proj to lm_head); known: q_proj" in str(problem)
    )


@pytest.mark.parametrize("ignore", [["q_proj"], ["up_proj"], [r"re:layers\.2\.self_attn\.v_proj"]])
def test_what_vllm_fuses_is_not_split(
    tiny_llama: Path, small_recipe: MakeRecipe, ignore: list[str]
) -> None:
    recipe = small_recipe(quantization={"ignore": ignore})
    (problem,) = input_problems(recipe, FolderSource(tiny_llama))
    assert "which vLLM fuses into" in str(problem)


def test_something_must_be_left_to_quantize(tiny_llama: Path, small_recipe: MakeRecipe) -> None:
    recipe = small_recipe(quantization={"ignore": ["re:.*"]})
    (problem,) = input_problems(recipe, FolderSource(tiny_llama))
    assert "leave no linear to quantize" in str(problem)


def test_smoothing_needs_something_that_takes_the_scales(
    make_model: Callable[..., Path], small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m", "olmo2")

    def problems(**options: list[str]) -> list[str]:
        smoothing = {"method": "smooth_quant", "options": options}
        recipe = small_recipe(outlier_suppression=smoothing)
        return [str(problem) for problem in input_problems(recipe, FolderSource(folder))]

    (problem,) = problems()
    assert "outlier_suppression: no linears of olmo2 have a place for the scales" in problem
    assert problems(pairs=["norms", "up_down"]) == []


def test_what_stays_exact_in_any_recipe_is_said_with_the_reason(
    tmp_path: Path, store: LocalStore, small_recipe: MakeRecipe
) -> None:
    folder, recipe = zoo.make("deepseek_v3", tmp_path / "model"), small_recipe()
    planned = plan(store, recipe, fetch(store, str(folder)), bring_texts(store, recipe), 0)
    (remark,) = [each for each in run_facts(store, planned)["remarks"] if "any recipe" in each]
    assert remark.startswith("Exact in any recipe: ")
    assert "self_attn.kv_b_proj (vLLM multiplies it into the attention of MLA itself)" in remark
    assert "mlp.gate (" in remark


def test_linears_of_shapes_that_no_kernel_takes_stay_exact(
    tmp_path: Path, store: LocalStore, small_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTLIB_DRY_LOAD", "never")
    folder = zoo.make("falcon_h1", tmp_path / "model")
    recipe = small_recipe()
    _, adapter = open_model(FolderSource(folder))
    exact = exact_linears(recipe.quantization, adapter)
    assert exact == [{"mamba.in_proj"}] * adapter.blocks
    planned = plan(store, recipe, fetch(store, str(folder)), bring_texts(store, recipe), 0)
    remarks = run_facts(store, planned)["remarks"]
    assert "multiples of 32, so that mamba.in_proj (1096 x 256)" in remarks[-2]
    eight_bits = WeightScheme(bits=8, group_size=-1)
    of_activations_too = recipe.quantization.of_scheme(
        LinearScheme(weights=eight_bits, activations="int8")
    )
    assert exact_linears(of_activations_too, adapter) == [set()] * adapter.blocks


def test_what_vllm_fuses_with_an_unsuited_linear_stays_exact_too(
    make_model: Callable[..., Path], tmp_path: Path, small_recipe: MakeRecipe
) -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 40}
    folder = make_model(tmp_path / "model", **heads)
    recipe = small_recipe()
    _, adapter = open_model(FolderSource(folder))
    qkv = {f"self_attn.{name}_proj" for name in "qkv"}
    assert exact_linears(recipe.quantization, adapter) == [qkv] * adapter.blocks
    only = small_recipe(quantization={"ignore": ["o_proj", "re:mlp"]})
    (problem,) = model_problems(only, *open_model(FolderSource(folder)))
    assert "leave no linear to quantize; vLLM's kernels for packed weights need" in str(problem)
    assert "self_attn.k_proj (40 x 64)" in str(problem)


def test_what_the_gpu_lacks_for_serving_is_said(
    store: LocalStore, tiny_llama: Path, small_recipe: MakeRecipe
) -> None:
    recipe = small_recipe(
        quantization={"schemes": [{"scheme": "NVFP4", "linears": ["mlp"]}], "method": "minmax"},
    )
    model, texts = fetch(store, str(tiny_llama)), bring_texts(store, recipe)
    planned = plan(store, recipe, model, texts, 0, find_hardware("h100-80g"))
    remarks = run_facts(store, planned)["remarks"]
    (said,) = (line for line in remarks if "served on" in line)
    assert said.startswith("NVFP4, served on h100-80g: the GPU multiplies no FP4")
    _, adapter = open_model(FolderSource(tiny_llama))
    assert serving_lines(recipe, adapter, find_hardware("b200-180g")) == []
