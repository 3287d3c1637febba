"""Lets auto-round's AutoScheme choose schemes; runs in an environment of its own.

    python auto_scheme_peer.py JOB.json

The job names the model folder, a .npy file of calibration tokens, bits per weight, the schemes to
choose from as auto-round calls them, and the JSON file to write: bits and size of groups by the
name of each linear.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from auto_round import AutoRound, AutoScheme
from transformers import AutoTokenizer

ALIKE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""What vLLM computes as one, and has one scheme for."""


def main() -> None:
    """Runs the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    tokens = np.load(job["tokens"])
    texts = Path(job["output"]).with_suffix(".texts.jsonl")
    # It takes texts alone, of which it drops those with fewer tokens than it reads.
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    rows = [json.dumps({"text": tokenizer.decode(window)}) for window in tokens]
    texts.write_text("\n".join(rows) + "\n")
    search = AutoScheme(
        avg_bits=job["bits"],
        options=job["options"],
        shared_layers=ALIKE,
        nsamples=len(tokens),
        seqlen=tokens.shape[1] // 2,
        batch_size=1,
        dataset=str(texts),
    )
    rounding = AutoRound(
        job["model"],
        scheme=search,
        iters=0,
        dataset=str(texts),
        disable_model_free=True,
        device_map="cpu",
    )
    rounding.post_init()
    chosen = {
        name: (layer["bits"], layer["group_size"])
        for name, layer in rounding.layer_config.items()
        if name.endswith("_proj")
    }
    Path(job["output"]).write_text(json.dumps(chosen, indent=1))


if __name__ == "__main__":
    main()
