"""vLLM serves quantized wrappers with and without images, as transformers computes them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import assert_served_as_meant

import images
from quantlib.evaluation.transformers_engine import load_model
from quantlib.store import LocalStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform"),
]

_SCRIPT = """
import gc, json, os, sys, traceback
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
os.environ |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_INT4_W4A8": "0", "VLLM_NO_USAGE_STATS": "1"}

def serve(folder, text, worker):
    llm = LLM(model=folder, max_model_len=128, max_num_seqs=1, enforce_eager=True,
              dtype="bfloat16", distributed_executor_backend="uni", max_logprobs=512,
              limit_mm_per_prompt={"image": 1}, mm_processor_cache_gb=0, worker_cls=worker,
              enable_prefix_caching=False, kv_cache_memory_bytes=1 << 26)
    parameters = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=512)
    found = []
    for prompt in ({"prompt": text, "multi_modal_data": {"image": Image.open(picture)}},
                   {"prompt": "Say: what is it?"}):
        (result,) = llm.generate(prompt, parameters, use_tqdm=False)
        rows = [[row[t].logprob for t in range(512)] for row in result.prompt_logprobs[1:]]
        found.append((result.prompt_token_ids, rows))
    with open(f"{folder}/served.json", "w") as file:
        json.dump(found, file)

if __name__ == "__main__":
    worker, picture, jobs = json.loads(sys.argv[1])
    from PIL import Image
    from vllm import LLM, SamplingParams
    gc.freeze()  # or each process goes over all that was imported, several times
    for folder, text in jobs:
        if not os.fork():
            status = 1
            try:
                serve(folder, text, worker)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)  # taking the engine apart would take a second
        os.wait()
"""

CASES = [
    *((family, "compressed-tensors") for family in images.TOKENS),
    ("qwen3_vl", "awq"),
    ("qwen3_vl", "gptq"),
]


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
) -> tuple[Path, str]:
    """The folder of the quantized models, each with what vLLM made of it, and what vLLM said.

    vLLM is imported once, and each model is served by a forked process.
    """
    root = tmp_path_factory.mktemp("served")
    images.picture().save(root / "picture.png")
    jobs = []
    for family, format in CASES:
        folder, source = root / f"{family}-{format}", root / family
        if not source.exists():
            images.make(family, source)
        recipe = small_recipe(num_ranges=2, quantization={"format": format})
        store = LocalStore(root / f"{folder.name}-store")
        made = run_steps(store, recipe, source)
        made.export(folder)
        jobs.append((str(folder), images.prompt(family)))
    (root / "serve.py").write_text(_SCRIPT)
    worker = "quantlib.evaluation.vllm_cpu_worker.CorrectedCpuWorker"
    asked = json.dumps([worker, str(root / "picture.png"), jobs])
    done = subprocess.run(
        [sys.executable, str(root / "serve.py"), asked],
        capture_output=True,
        text=True,
        check=False,
    )
    return root, done.stderr


@pytest.mark.parametrize(("family", "format"), CASES)
def test_a_quantized_wrapper_is_served_with_an_image(
    family: str, format: str, served: tuple[Path, str]
) -> None:
    from transformers import AutoProcessor

    root, said = served
    folder, picture, text = root / f"{family}-{format}", images.picture(), images.prompt(family)
    assert (folder / "served.json").exists(), said[-3000:]
    (with_image, of_image), (without, of_text) = json.loads((folder / "served.json").read_text())

    given = AutoProcessor.from_pretrained(folder)(images=[picture], text=text, return_tensors="pt")
    assert with_image == given["input_ids"][0].tolist()
    # Tokens of an image see each other in Gemma 3. vLLM has no such attention on a CPU: each sees
    # those before it, without a word.
    given.pop("token_type_ids", None)
    model = load_model(folder, torch.float32)
    with torch.no_grad():
        seen = model(**given).logits[0, :-1].log_softmax(-1).numpy()
        other = given["pixel_values"].flip(0, -1)
        unlike = model(**(given | {"pixel_values": other})).logits[0, :-1].log_softmax(-1).numpy()
        read = model(torch.tensor([without])).logits[0, :-1].log_softmax(-1).numpy()
    assert_served_as_meant(np.array(of_image), seen)
    assert_served_as_meant(np.array(of_text), read)
    with pytest.raises(AssertionError):  # the image counts
        assert_served_as_meant(np.array(of_image), unlike)
