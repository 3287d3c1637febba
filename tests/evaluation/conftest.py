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
    """Makes jobs over the same four windows, each with an output folder of its own."""
    tokens = tmp_path_factory.mktemp("text") / "tokens.npy"
    np.save(tokens, np.random.default_rng(0).integers(2, 512, size=(4, 48)))

    def make(model: Path, reference: Path | None = None, **changes: Any) -> Job:
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
