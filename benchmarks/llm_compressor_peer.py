"""Quantizes a model with llm-compressor; runs in an environment of its own (see peers.py).

    python llm_compressor_peer.py JOB.json

The job names the model folder, a .npy file of calibration tokens, the output folder and the scheme;
with a method that is a scheme of compressed-tensors, otherwise one of those below.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from compressed_tensors.quantization import preset_name_to_scheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from transformers import AutoModelForCausalLM


def main() -> None:
    """Runs the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    tokens = np.load(job["tokens"])
    data = Dataset.from_dict(
        {"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()}
    )
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto")
    if "method" in job:
        recipe = _of_preset(job["scheme"], job["method"], job["group_size"])
    elif job["scheme"] == "w8a8":
        recipe = [_smooth_quant(job["alpha"]), _modifier(GPTQModifier, {"scheme": "W8A8"})]
    else:
        weights = {
            "num_bits": 4,
            "type": "int",
            "symmetric": not job["scheme"].endswith("asymmetric"),
            "strategy": "group",
            "group_size": 64,
        }
        groups = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
        kind = GPTQModifier if job["scheme"] == "gptq" else QuantizationModifier
        recipe = [_modifier(kind, groups)]
        if job["scheme"].startswith("awq"):
            recipe.insert(0, _awq())
    oneshot(
        model=model,
        dataset=data,
        recipe=recipe,
        max_seq_length=tokens.shape[1],
        num_calibration_samples=tokens.shape[0],
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(job["output"], save_compressed=True)


def _of_preset(name: str, method: str, group_size: int | None) -> list[object]:
    """A method with everything at its default, for a scheme by its name."""
    scheme = preset_name_to_scheme(name, ["Linear"])
    if group_size is not None:
        scheme.weights.group_size = group_size
    kind = GPTQModifier if method == "gptq" else QuantizationModifier
    recipe = [_modifier(kind, {"config_groups": {"group_0": scheme}})]
    return [_awq(), *recipe] if method == "awq" else recipe


def _modifier(kind: type, settings: dict) -> object:
    return kind(ignore=["lm_head"], **({"targets": "Linear"} | settings))


def _smooth_quant(alpha: float) -> object:
    try:
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    except ImportError:
        from llmcompressor.modifiers.smoothquant import SmoothQuantModifier
    return SmoothQuantModifier(smoothing_strength=alpha)


def _awq() -> object:
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    # It pins what it caches, which torch refuses without an accelerator.
    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_: None
    return AWQModifier()


if __name__ == "__main__":
    with torch.random.fork_rng():
        torch.manual_seed(0)
        main()
