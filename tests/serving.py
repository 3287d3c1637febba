"""What vLLM makes of checkpoints, and what their codes stand for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from quantlib.evaluation.transformers_engine import load_model

TOKENS = [(7 * n) % 512 for n in range(64)]

_SCRIPT = """
import gc, json, os, sys, traceback
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
os.environ |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_INT4_W4A8": "0", "VLLM_NO_USAGE_STATS": "1"}

def predict(folder, tokens, output, dtype):
    llm = LLM(model=folder, max_model_len=128, max_num_seqs=1, enforce_eager=True,
              dtype=dtype, distributed_executor_backend="uni", max_logprobs=512,
              skip_tokenizer_init=True, language_model_only=True,
              enable_prefix_caching=False, kv_cache_memory_bytes=1 << 24)
    parameters = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=512, detokenize=False)
    (result,) = llm.generate({"prompt_token_ids": tokens}, parameters, use_tqdm=False)
    found = [[row[t].logprob for t in range(512)] for row in result.prompt_logprobs[1:]]
    with open(output, "w") as file:
        json.dump(found, file)
    return llm

if __name__ == "__main__":
    import torch
    from vllm import LLM, SamplingParams
    from vllm.model_executor.layers.quantization import get_quantization_config
    get_quantization_config("gptq")  # imports all of them, once
    gc.freeze()  # or each process goes over all that was imported, several times
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()  # the kernel for 4-bit weights uses tiles without asking for them
    tokens, preparation, jobs = json.loads(sys.argv[1])
    exec(preparation)
    for folder, output, dtype in jobs:
        if not os.fork():
            status = 1
            try:
                llm = predict(folder, tokens, output, dtype)  # taking it apart would take a second
                status = 0
            except BaseException:
                traceback.print_exc()
                with open(output, "w") as file:
                    json.dump(traceback.format_exc(), file)
            sys.stderr.flush()
            os._exit(status)
        os.wait()
"""


def served_logprobs(
    folders: Sequence[Path],
    root: Path,
    preparation: str = "",
    float32: Collection[Path] = (),
) -> list[np.ndarray]:
    """As :func:`served_or_refused`, of checkpoints that vLLM has to serve."""
    served = []
    outcomes = served_or_refused(folders, root, preparation, float32)
    for folder, found in zip(folders, outcomes, strict=True):
        assert isinstance(found, np.ndarray), f"{folder}: {found[-3000:]}"
        served.append(found)
    return served


def served_or_refused(
    folders: Sequence[Path],
    root: Path,
    preparation: str = "",
    float32: Collection[Path] = (),
) -> list[np.ndarray | str]:
    """What vLLM predicts after each of :data:`TOKENS`, ``[positions, vocabulary]`` per checkpoint.

    vLLM is imported once, and each checkpoint is loaded by a forked process: within a process vLLM
    remembers which parts it has fused.

    Args:
        folders: Of checkpoints with a vocabulary of 512 tokens.
        root: A folder for files in between.
        preparation: Python to run in vLLM's process before anything is loaded.
        float32: Those of the folders that are computed in float32, not in bfloat16.

    Returns:
        In the place of a checkpoint that vLLM did not serve, the error that it ended with.
    """
    script = root / "logprobs.py"
    script.write_text(_SCRIPT)
    outputs = [root / f"logprobs-{number}.json" for number in range(len(folders))]
    jobs = [
        [str(folder), str(file), "float32" if folder in float32 else "bfloat16"]
        for folder, file in zip(folders, outputs, strict=True)
    ]
    done = subprocess.run(
        [sys.executable, str(script), json.dumps([TOKENS, preparation, jobs])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(file.read_text()) for file in outputs]
    return [each if isinstance(each, str) else np.array(each) for each in found]


@torch.no_grad()
def reference_logprobs(folder: Path) -> np.ndarray:
    """The same by transformers in float32, from the weights that the codes stand for."""
    model = load_model(folder, torch.float32)
    return model(torch.tensor([TOKENS])).logits[0, :-1].log_softmax(-1).numpy()


def assert_served_as_meant(
    served: np.ndarray, reference: np.ndarray, divergence_allowed: float = 0.01
) -> None:
    """Asserts that predictions differ by no more than the rounding of bfloat16."""
    assert np.isfinite(served).all(), "not finite"
    divergence = (np.exp(reference) * (reference - served)).sum(-1)
    # Rounding of activations gives about 1e-3; wrong scales or zero points, or a linear that is
    # taken for exact, give more than 0.1.
    assert divergence.mean() < divergence_allowed, divergence.mean()
    spread = reference.std(0).mean()
    assert spread > 0.1, "the model says the same everywhere, so this test could not fail"
