"""The original's states by its own forward, block by block, against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantlib.checkpoint.source import FolderSource
from quantlib.evaluation.streamed_original import read_windows
from quantlib.evaluation.transformers_engine import load_model
from quantlib.models import open_model
from quantlib.models.streamed import StreamedModel

MakeModel = Callable[..., Path]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen3": {},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "gemma2": {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 32},
    "mixtral": {"num_local_experts": 4},
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_states_and_log_likelihoods_are_those_of_transformers(
    model_type: str, make_model: MakeModel, tmp_path: Path, float32_products: None
) -> None:
    folder = make_model(tmp_path / "model", model_type, **FAMILIES[model_type])
    checkpoint, adapter = open_model(FolderSource(folder))
    streamed = StreamedModel(adapter, checkpoint, torch.device("cpu"))
    tokens = torch.from_numpy(np.random.default_rng(0).integers(2, 512, size=(5, 40)))
    done: list[int] = []
    found = read_windows(streamed, tokens, lambda: done.append(1))
    assert len(done) == adapter.blocks

    whole = load_model(folder, torch.float32).eval()
    with torch.inference_mode():
        states = whole.base_model(tokens, use_cache=False).last_hidden_state
        logits = whole(tokens, use_cache=False).logits
    torch.testing.assert_close(found["hidden"], states[:, :-1])
    ahead = logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    torch.testing.assert_close(found["logprobs"], ahead, rtol=1e-4, atol=1e-4)
