"""With what the table spells in ``ignore``, vLLM itself leaves every linear exact."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import zoo

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.models.fusion import vllm_names

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform"),
]

_SCRIPT = """
import json, os, sys, tempfile
import torch
from quantlib.evaluation.vllm_engine import preload, register_without_subprocess

def quantized(folder):
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    register_without_subprocess(json.load(open(f"{folder}/config.json")))
    config = EngineArgs(
        model=folder, skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True,
        load_format="dummy", distributed_executor_backend="uni", max_model_len=128,
    ).create_engine_config()
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{tempfile.mkdtemp()}/rendezvous", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        with set_default_torch_dtype(torch.bfloat16):
            model = initialize_model(config)
    return [
        name for name, module in model.named_modules() if isinstance(module, LinearBase)
        if not type(module.quant_method).__name__.startswith("Unquantized")
    ]

if __name__ == "__main__":
    preload()
    for folder in sys.argv[1:]:
        if not os.fork():
            try:
                found = json.dumps(quantized(folder))
            except BaseException as error:
                found = json.dumps(repr(error)[:500])
            open(f"{folder}/found.json", "w").write(found)
            os._exit(0)
        os.wait()
"""

FAMILIES = [
    *("llama", "granitemoehybrid", "falcon_h1", "gemma3n", "gemma4_moe", "minimax_m2", "gpt_oss"),
    *("qwen3_moe", "mixtral", "qwen3_5_images", "mistral3_images", "olmo2", "hunyuan_v1_moe"),
]
TRAPS = {"granitemoehybrid", "falcon_h1", "gemma3n", "gemma4_moe", "qwen3_moe"}
"""Families with linears that vLLM asks for by names that are not those on disk."""


def write(family: str, folder: Path, spelled: bool) -> Path:
    """A model of a family whose config says that all linears are FP8, but for all of them."""
    zoo.make(family, folder)
    checkpoint = Checkpoint.open(FolderSource(folder))
    config = dict(checkpoint.config)
    text = config.get("text_config", config)
    names = vllm_names(config["architectures"][0], text["num_hidden_layers"])
    assert names is not None
    ignore: list[str] = []
    for name, info in checkpoint.tensors.items():
        module = name.removesuffix(".weight")
        if len(info.shape) > 1 and (spelled or names.experts(module)):
            ignore += names.spelled(module)
        elif len(info.shape) > 1:
            ignore.append(module)
    grid = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": grid | {"strategy": "channel", "dynamic": False},
        "input_activations": grid | {"strategy": "token", "dynamic": True},
    }
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ignore,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], object]:
    """Which linears vLLM takes for quantized, by family and whether its spellings are ignored."""
    root = tmp_path_factory.mktemp("ignored")
    cases = [(family, True) for family in FAMILIES] + [(family, False) for family in sorted(TRAPS)]
    folders = {case: write(case[0], root / f"{case[0]}-{case[1]}", case[1]) for case in cases}
    script = root / "script.py"
    script.write_text(_SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), *map(str, folders.values())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        case: json.loads((folder / "found.json").read_text()) for case, folder in folders.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_is_ignored_stays_exact(
    family: str, quantized: dict[tuple[str, bool], object]
) -> None:
    assert quantized[family, True] == []


@pytest.mark.parametrize("family", sorted(TRAPS))
def test_names_on_disk_alone_would_not_do(
    family: str, quantized: dict[tuple[str, bool], object]
) -> None:
    assert quantized[family, False]
