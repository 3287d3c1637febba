"""Jobs on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantlib.evaluation.job import Job

MakeJob = Callable[..., Job]


@pytest.fixture(scope="module")
def make_job(tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    """Makes jobs over the same four windows, each with an output folder of its own.

    A test that kills a job takes more ``windows`` than can be read before it gets its turn.
    """
    text = tmp_path_factory.mktemp("text")

    def make(model: Path, reference: Path | None = None, windows: int = 4, **changes: Any) -> Job:
        tokens = text / f"{windows}.npy"
        if not tokens.exists():
            np.save(tokens, np.random.default_rng(0).integers(2, 512, size=(windows, 48)))
        settings: dict[str, Any] = {
            "engine": "transformers",
            "model": str(model),
            "device": "cpu",
            "dtype": "bfloat16",
            "tokens": str(tokens),
            "prompts": [[5, 6, 7], [40, 41, 42, 43]],
            "max_new_tokens": 6,
            "reference": reference and str(reference),
            "output": str(tmp_path_factory.mktemp("output")),
        }
        return Job(**settings | changes)

    return make
