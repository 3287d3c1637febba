"""What vLLM makes of names: look-ups, and the table against the vLLM that is installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from quantlib.models.fusion import VllmNames, vllm_names, vllm_version

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = [
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    *("Gemma2ForCausalLM", "Gemma3ForCausalLM", "GraniteForCausalLM", "Olmo2ForCausalLM"),
    *("Phi3ForCausalLM", "MixtralForCausalLM", "Qwen3MoeForCausalLM"),
]


def names(architecture: str) -> VllmNames:
    found = vllm_names(architecture)
    assert found is not None
    return found


def block(prefix: str, *linears: str) -> list[str]:
    return [f"{prefix}.{linear}" for linear in linears]


def test_the_table_is_of_the_pinned_vllm() -> None:
    pinned = re.findall(r'"vllm(?:-cpu)?==([^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert set(pinned) == {vllm_version()}


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_what_is_computed_as_one_is_told_for_every_family(architecture: str) -> None:
    attention = block("model.layers.7.self_attn", "v_proj", "q_proj", "k_proj", "o_proj")
    fused = names(architecture).fused(attention)
    if architecture == "Phi3ForCausalLM":  # one on disk already
        assert fused == {}
        return
    parts = tuple(block("model.layers.7.self_attn", "q_proj", "k_proj", "v_proj"))
    assert fused == {"model.layers.7.self_attn.qkv_proj": parts}
    assert not any(map(names(architecture).never, attention))


def test_every_row_can_be_looked_up() -> None:
    table = json.loads((ROOT / "quantlib" / "models" / "vllm.json").read_text())["architectures"]
    assert len(table) > 100
    for architecture, row in table.items():
        found = vllm_names(architecture, blocks=40)
        assert found is not None
        modules = [
            *(name for parts in row.get("fused", {}).values() for name in parts),
            *row.get("spelled", {}),
            *row.get("experts", {}),
            *row.get("never", ()),
        ]
        for module in (name.replace("*", "3") for name in modules):
            for spelled in found.spelled(module):
                assert spelled.startswith("re:") or not {"*", "#"} & set(spelled)
            assert not found.never(module) or not found.fused([module, module])
        for name in row.get("experts", {}):
            experts = found.experts(name.replace("*", "3"))
            assert experts is not None
            assert experts.names


def test_an_architecture_that_was_not_looked_at_is_not_known() -> None:
    assert vllm_names("NobodysForCausalLM") is None


def test_linears_alone_are_left_out() -> None:
    linears = block("model.layers.0.mlp", "gate_proj", "down_proj")
    assert names("LlamaForCausalLM").fused(linears) == {}
    both = block("model.layers.0.mlp", "up_proj", "gate_proj", "down_proj")
    assert names("LlamaForCausalLM").fused(both) == {
        "model.layers.0.mlp.gate_up_proj": (both[1], both[0])
    }


def test_all_experts_of_a_mixture_are_one() -> None:
    experts = [f"model.layers.3.mlp.experts.{e}.{n}_proj" for e in (0, 11) for n in ("up", "down")]
    ((whole, parts),) = names("DeepseekV3ForCausalLM").fused(experts).items()
    assert whole == "model.layers.3.mlp.experts"
    assert sorted(parts) == sorted(experts)


@pytest.mark.parametrize(
    ("architecture", "module", "spelled"),
    [
        ("LlamaForCausalLM", "model.layers.1.mlp.down_proj", []),
        ("GraniteMoeHybridForCausalLM", "model.layers.1.mamba.in_proj", ["layers.1.mixer.in_proj"]),
        ("FalconH1ForCausalLM", "model.layers.1.self_attn.k_proj", ["layers.1.k_proj"]),
        ("Gemma3nForCausalLM", "model.altup_projections.2", ["self_decoder.altup_projections.2"]),
        # Values that are the keys have no linear on disk, and vLLM asks for one.
        ("Gemma4ForCausalLM", "model.layers.1.self_attn.q_proj", ["layers.1.self_attn.v_proj"]),
        ("Qwen3_5ForConditionalGeneration", "model.language_model.layers.0.mlp.down_proj", []),
    ],
)
def test_vllms_own_spelling_is_told(architecture: str, module: str, spelled: list[str]) -> None:
    expected = (module, *(f"model.{name}" for name in spelled))
    assert names(architecture).spelled(module) == expected


def test_a_number_that_counts_on_needs_the_number_of_blocks() -> None:
    module = "model.layers.12.mamba.out_proj"
    known = vllm_names("FalconH1ForCausalLM", blocks=36)
    assert known is not None
    assert known.spelled(module) == (module, "model.48.mixer.out_proj")
    _, pattern = names("FalconH1ForCausalLM").spelled(module)
    assert re.match(pattern.removeprefix("re:"), "model.48.mixer.out_proj")
    assert not re.match(pattern.removeprefix("re:"), "model.48.mixer.out_proj_of_another")


@pytest.mark.parametrize(
    "module", ["experts", "experts.gate_up_proj", "experts.down_proj", "experts.0.down_proj"]
)
def test_experts_are_spelled_as_patterns_where_vllm_renames_them(module: str) -> None:
    spelled = names("GptOssForCausalLM").spelled(f"model.layers.4.mlp.{module}")
    patterns = [name.removeprefix("re:") for name in spelled if name.startswith("re:")]
    asked = "model.layers.4.mlp.experts.0.down_proj"
    assert any(re.match(pattern, asked) for pattern in patterns)
    assert not any(re.match(pattern, asked.replace(".4.", ".14.")) for pattern in patterns)


def test_what_vllm_never_quantizes_is_told() -> None:
    assert names("Qwen3NextForCausalLM").never("model.layers.2.mlp.shared_expert_gate")
    assert names("Gemma4ForCausalLM").never("model.layers.2.router.proj")
    assert names("DeepseekV32ForCausalLM").never("model.layers.2.self_attn.indexer.wk")
    assert not names("Qwen3NextForCausalLM").never("model.layers.2.linear_attn.in_proj_ba")


@pytest.mark.parametrize(
    ("architecture", "module", "linears", "stacked"),
    [
        ("MixtralForCausalLM", "model.layers.3.block_sparse_moe.experts", "w1 w3 | w2", False),
        ("Qwen3MoeForCausalLM", "model.layers.3.mlp.experts", "gate_proj up_proj | down_proj", 0),
        ("NemotronHForCausalLM", "backbone.layers.3.mixer.experts", "up_proj | down_proj", False),
        ("GptOssForCausalLM", "model.layers.3.mlp.experts", "gate_up_proj | down_proj", True),
        ("Gemma4ForCausalLM", "model.layers.3.experts", "gate_proj up_proj | down_proj", True),
        (
            "GraniteMoeHybridForCausalLM",
            "model.layers.3.block_sparse_moe.experts",
            "gate_proj up_proj | down_proj",
            True,
        ),
    ],
)
def test_how_experts_are_called_is_told(
    architecture: str, module: str, linears: str, stacked: bool
) -> None:
    first, second = (tuple(part.split()) for part in linears.split("|"))
    found = names(architecture).experts(f"{module}.5.{second[0]}")
    assert found is not None
    assert (found.module, found.first, found.second) == (module, first, second)
    assert bool(found.stacked) == stacked
    assert names(architecture).experts(module) == found
    for tensor in found.stacked:
        assert ".3." in tensor
        assert names(architecture).experts(tensor) == found
    assert names(architecture).experts("model.layers.3.self_attn.q_proj") is None


def test_neither_torch_nor_vllm_is_imported() -> None:
    code = (
        "import sys; from quantlib.models.fusion import vllm_names; "
        "assert vllm_names('LlamaForCausalLM'); "
        "assert not {'torch', 'transformers', 'vllm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def compare(*models: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "vllm_table.py"), "--check", *models]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")


@pytest.mark.slow
@pytest.mark.vllm
@needs_vllm
def test_vllm_says_the_same_of_some_architectures() -> None:
    models = ("llama", "olmo2", "granitemoehybrid", "gpt_oss", "gemma4_moe", "qwen3_5_images")
    done = compare(*models)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [name for name in models if f"{name}: " not in done.stdout]


def test_a_row_that_differs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import vllm_table

    table = json.loads(vllm_table.TABLE.read_text())["architectures"]
    row = table["GraniteMoeHybridForCausalLM"]
    assert vllm_table.within({**row, "never": row["never"][:1]}, row)
    assert not vllm_table.within({**row, "never": ["model.layers.*.mamba.in_proj"]}, row)
    assert not vllm_table.within({**row, "spelled": {"model.layers.*.x": []}}, row)
    assert not vllm_table.within({**row, "class": "TransformersForCausalLM"}, row)
