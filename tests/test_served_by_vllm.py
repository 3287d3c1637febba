"""What vLLM makes of our checkpoints: families and formats against the same weights unquantized.

vLLM loads the quantized checkpoint, and as its reference a checkpoint with the weights that the
codes stand for. Both see the same tokens; their logits differ by the rounding of bfloat16.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import write_tensors
from quantlib.formats.dequantize import dequantized_state
from quantlib.store import LocalStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform"),
]

CT = {"format": "compressed-tensors"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gptq": ("llama", {}),
    "llama-gptq-layers": ("llama", {"layers": [0, 2]}),
    "llama-gptq-ignore": ("llama", {"ignore": ["o_proj", "gate_proj", "up_proj"]}),
    "mistral-gptq-channel": ("mistral", {"weights": {"bits": 4, "group_size": -1}}),
    "qwen2-packed-asymmetric": (
        "qwen2",
        CT | {"weights": {"bits": 4, "group_size": 32, "symmetric": False}},
    ),
    "qwen3-packed-layers": ("qwen3", CT | {"layers": [1, 3]}),
    "llama-w8a8": (
        "llama",
        CT | {"weights": {"bits": 8, "group_size": -1}, "activations": "int8"},
    ),
}

LOGPROBS = """
import json, os, sys
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
os.environ |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_INT4_W4A8": "0", "VLLM_NO_USAGE_STATS": "1"}
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    folders, tokens, output = json.loads(sys.argv[1])
    found = {}
    for folder in folders:
        llm = LLM(model=folder, max_model_len=128, max_num_seqs=1, enforce_eager=True,
                  dtype="bfloat16", distributed_executor_backend="uni", max_logprobs=512,
                  skip_tokenizer_init=True, enable_prefix_caching=False)
        parameters = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=512,
                                    detokenize=False)
        (result,) = llm.generate({"prompt_token_ids": tokens}, parameters, use_tqdm=False)
        found[folder] = [[row[t].logprob for t in range(512)] for row in result.prompt_logprobs[1:]]
        llm.llm_engine.engine_core.shutdown()
        del llm
    with open(output, "w") as file:
        json.dump(found, file)
"""


@pytest.fixture(scope="module")
def logprobs(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., Path],
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
) -> dict[str, np.ndarray]:
    """Of every case, quantized and as a reference; ``[2, positions, vocabulary]``."""
    root = tmp_path_factory.mktemp("served")
    for name, (model_type, quantization) in CASES.items():
        source = make_model(root / name / "source", model_type, initializer_range=0.1)
        recipe = small_recipe(num_ranges=2, quantization=quantization)
        store = LocalStore(root / name / "store")
        made = run_steps(store, recipe, source)
        for file in made.checkpoint.facts["checkpoint_files"]:
            store.export_file(made.checkpoint.path(file), root / name / "quantized" / file)
        write_reference(root / name / "quantized", root / name / "reference")
    folders = [str(root / name / kind) for name in CASES for kind in ("quantized", "reference")]
    output = root / "logprobs.json"
    job = json.dumps([folders, [(7 * n) % 512 for n in range(64)], str(output)])
    script = root / "logprobs.py"
    script.write_text(LOGPROBS)
    done = subprocess.run(
        [sys.executable, str(script), job], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(output.read_text())
    return {
        name: np.array([found[str(root / name / kind)] for kind in ("quantized", "reference")])
        for name in CASES
    }


def write_reference(quantized: Path, folder: Path) -> None:
    """The quantized checkpoint with plain weights."""
    folder.mkdir()
    checkpoint = Checkpoint.open(FolderSource(quantized))
    write_tensors(folder / "model.safetensors", dict(dequantized_state(checkpoint)))
    config = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((quantized / name).read_bytes())


@pytest.mark.parametrize("case", CASES)
def test_vllm_computes_what_the_quantizer_meant(case: str, logprobs: dict[str, np.ndarray]) -> None:
    quantized, reference = logprobs[case]
    assert np.isfinite(quantized).all()
    divergence = (np.exp(reference) * (reference - quantized)).sum(-1)
    # What a reference differs from itself by, once its activations are rounded, is about 1e-4;
    # wrong scales, zero points or an unquantized linear give more than 0.1.
    limit = 0.02 if "w8a8" in case else 0.003
    assert divergence.mean() < limit
    spread = reference.std(0).mean()
    assert spread > 0.1, "the model says the same everywhere, so this test could not fail"
