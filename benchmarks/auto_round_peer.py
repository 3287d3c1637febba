"""Quantizes a model with auto-round; runs in an environment of its own (see environments.py).

    python auto_round_peer.py JOB.json

The job names the model folder, a .npy file of calibration tokens, the output folder, a scheme as
auto-round calls it, and how many steps a block is tuned; none for rounding to nearest.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from auto_round import AutoRound


def main() -> None:
    """Runs the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    tokens = torch.from_numpy(np.load(job["tokens"]))
    work = Path(job["output"]).with_suffix(".work")
    tuning = {"disable_opt_rtn": True} if job["steps"] == 0 else {}
    rounding = AutoRound(
        job["model"],
        scheme=job["scheme"],
        iters=job["steps"],
        nsamples=len(tokens),
        seqlen=tokens.shape[1],
        batch_size=min(8, len(tokens)),
        dataset=list(tokens.split(1)),
        device_map="cpu",
        disable_model_free=True,
        **tuning,
    )
    rounding.quantize_and_save(str(work), format="llm_compressor")
    # It writes into a folder of its own naming below.
    (config,) = work.rglob("config.json")
    config.parent.rename(job["output"])
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
