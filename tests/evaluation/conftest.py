"""Jobs on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantlib.evaluation.job import Job

MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """Makes jobs over the same four windows, each with an output folder of its own."""
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.random.default_rng(0).integers(2, 512, size=(4, 48)))

    def make(model: Path, name: str, reference: Path | None = None, **changes: Any) -> Job:
        output = tmp_path / name
        output.mkdir()
        settings: dict[str, Any] = {
            "engine": "transformers",
            "model": str(model),
            "device": "cpu",
            "dtype": "bfloat16",
            "tokens": str(tokens),
            "prompts": [[5, 6, 7], [40, 41, 42, 43]],
            "max_new_tokens": 6,
            "reference": reference and str(reference),
            "output": str(output),
        }
        return Job(**settings | changes)

    return make
