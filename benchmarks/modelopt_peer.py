"""Quantizes a model with nvidia-modelopt; runs in an environment of its own (see environments.py).

    python modelopt_peer.py JOB.json

The job names the model folder, a .npy file of calibration tokens, the output folder, a config of
modelopt and the size of groups. What is written is the model with the weights that modelopt's
codes and scales stand for, times what AWQ multiplies their inputs by.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import modelopt.torch.quantization as mtq
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def main() -> None:
    """Runs the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    tokens = torch.from_numpy(np.load(job["tokens"]))
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto")
    config = copy.deepcopy(getattr(mtq, job["scheme"]))
    for entry in config["quant_cfg"]:
        sizes = (entry.get("cfg") or {}).get("block_sizes")
        if sizes and job["group_size"]:
            sizes[-1] = job["group_size"]
    mtq.quantize(model, config, lambda quantized: [quantized(row[None]) for row in tokens])
    plain = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    for name, module in model.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is None or not quantizer.is_enabled:
            continue
        weight = quantizer(module.weight).float()
        scale = getattr(module.input_quantizer, "pre_quant_scale", None)
        plain.get_submodule(name).weight.copy_(weight if scale is None else weight * scale)
    plain.save_pretrained(job["output"])
    AutoTokenizer.from_pretrained(job["model"]).save_pretrained(job["output"])


if __name__ == "__main__":
    main()
