"""Quantizes a model with the hqq package; runs in the peers' environment (see peers.py).

    python hqq_peer.py JOB.json

The job names the model folder and the output folder. What is written is the model with the weights
that hqq's codes, scales and real-valued zero points stand for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from hqq.core.quantize import BaseQuantizeConfig, Quantizer
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def main() -> None:
    """Runs the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    settings = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)["weight_quant_params"]
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.Linear):
            codes, meta = Quantizer.quantize(
                module.weight, **settings, device="cpu", compute_dtype=torch.float32
            )
            module.weight.copy_(Quantizer.dequantize(codes, meta))
    model.save_pretrained(job["output"])
    AutoTokenizer.from_pretrained(job["model"]).save_pretrained(job["output"])


if __name__ == "__main__":
    main()
