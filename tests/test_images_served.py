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
import json, os, sys
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
os.environ |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_INT4_W4A8": "0", "VLLM_NO_USAGE_STATS": "1"}

def main():
    folder, text, picture, worker = sys.argv[1:]
    from PIL import Image
    from vllm import LLM, SamplingParams
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
    print("served", json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # taking the engine apart would take a second

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("family", "format"),
    [
        *((family, "compressed-tensors") for family in images.TOKENS),
        ("qwen3_vl", "awq"),
        ("qwen3_vl", "gptq"),
    ],
)
def test_a_quantized_wrapper_is_served_with_an_image(
    family: str,
    format: str,
    tmp_path: Path,
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
) -> None:
    from transformers import AutoProcessor

    recipe = small_recipe(num_ranges=2, quantization={"format": format})
    store, folder = LocalStore(tmp_path / "store"), tmp_path / "quantized"
    made = run_steps(store, recipe, images.make(family, tmp_path / "source"))
    for file in made.checkpoint.facts["checkpoint_files"]:
        store.export_file(made.checkpoint.path(file), folder / file)
    picture, text = images.picture(), images.prompt(family)
    picture.save(tmp_path / "picture.png")

    (tmp_path / "serve.py").write_text(_SCRIPT)
    worker = "quantlib.evaluation.vllm_cpu_worker.CorrectedCpuWorker"
    arguments = [str(folder), text, str(tmp_path / "picture.png"), worker]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "serve.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("served ")]
    assert lines, done.stderr[-3000:]
    (with_image, served), (without, served_text) = json.loads(lines[0].removeprefix("served "))

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
    assert_served_as_meant(np.array(served), seen)
    assert_served_as_meant(np.array(served_text), read)
    with pytest.raises(AssertionError):  # the image counts
        assert_served_as_meant(np.array(served), unlike)
