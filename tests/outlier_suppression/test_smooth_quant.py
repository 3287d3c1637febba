from pathlib import Path

import numpy as np
import pytest
import torch

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.models import model_registry
from quantlib.outlier_suppression import ChannelStatistics, SmoothQuantSuppressor


def test_scales_follow_the_paper() -> None:
    statistics = ChannelStatistics(
        np.array([16.0, 1.0, 0.0], np.float32), np.array([1.0, 4.0, 0.0], np.float32)
    )
    half = SmoothQuantSuppressor({"alpha": 0.5}).scales(statistics)
    assert half[:2] == pytest.approx([4.0, 0.5])
    assert np.isfinite(half).all()
    assert (half > 0).all()
    assert SmoothQuantSuppressor({"alpha": 1.0}).scales(statistics)[0] == pytest.approx(16)
    assert SmoothQuantSuppressor({"alpha": 0.0}).scales(statistics)[0] == pytest.approx(1)


@torch.no_grad()
def test_folding_keeps_the_function_and_moves_the_outlier(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(FolderSource(tiny_llama))
    adapter = model_registry.adapter_for(checkpoint.config)
    model = adapter.load_model(checkpoint, torch.device("cpu"))
    hidden = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))
    before, after = model.block(0), model.block(0)
    scale = torch.ones(64)
    scale[7] = 32.0
    changed = SmoothQuantSuppressor({}).apply(
        after, {"attention_input": scale, "mlp_input": scale}, torch.float32
    )
    assert list(changed) == ["input_layernorm.weight", "post_attention_layernorm.weight"]
    torch.testing.assert_close(after.forward(hidden), before.forward(hidden), rtol=1e-4, atol=1e-4)
    inputs: list[torch.Tensor] = []
    after.forward(hidden, lambda _, x: inputs.append(x))
    plain: list[torch.Tensor] = []
    before.forward(hidden, lambda _, x: plain.append(x))
    torch.testing.assert_close(inputs[0][..., 7] * 32, plain[0][..., 7])
    torch.testing.assert_close(inputs[0][..., 8], plain[0][..., 8])
