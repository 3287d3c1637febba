"""How many of the tokens that a model's own draft layers guess are those that it then says.

Layers of multi-token prediction guess a token ahead when the model is served so; vLLM computes the
guess along with the next token and keeps it where the model says the same. Quantizing the model
moves it away from what its draft layers, most often exact, learned to guess.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantlib.errors import QuantlibError
from quantlib.evaluation.job import DRAFTED_NAME, Drafted, Job
from quantlib.evaluation.process import Workers

LOG_NAME = "drafting.log"
"""What the engine printed meanwhile."""

_BEGINNING = 64
"""Tokens of every window of the held-out text that are gone on from, as prompts are."""


def let_draft(
    job: Job, label: str, workers: Workers, keep_log: Callable[[Path], object]
) -> Drafted:
    """Starts a model again, with its draft layers, and lets it complete prompts.

    Args:
        job: By which the model was judged.
        label: Which model it is, for messages.
        workers: Of the job's engine.
        keep_log: Keeps what the engine printed.

    Returns:
        What became of the drafts. Whatever the engine refuses, or dies of, is said there.
    """
    if job.engine != "vllm":
        return Drafted(refused=f"{job.engine} judges, which does not draft")
    windows = np.load(job.tokens)[:, :_BEGINNING].tolist()
    log = Path(job.output) / LOG_NAME
    drafting = replace(
        job, prompts=[*job.prompts, *windows], questions=[], reference=None, drafts=True
    )
    try:
        workers.run(drafting, f"{label}, drafting", log, LOG_NAME, lambda: None)
    except QuantlibError as error:
        return Drafted(refused=str(error).partition(";")[0])
    finally:
        if log.exists():
            keep_log(log)
    return Drafted.read(Path(job.output) / DRAFTED_NAME)


def drafting_of(original: Drafted, quantized: Drafted) -> dict[str, Any]:
    """What the evaluation says of both."""
    return {
        "original": original.rate,
        "quantized": quantized.rate,
        "drafts": quantized.drafts,
        "refused": original.refused or quantized.refused,
    }
