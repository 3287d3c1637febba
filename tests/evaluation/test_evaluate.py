"""Figures of a comparison."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from quantlib.evaluation.engines import EngineChoice
from quantlib.evaluation.evaluate import Setting, summarize
from quantlib.store import Receipt
from quantlib.text.windows import Windows

RANDOM = np.random.default_rng(0)
KL = RANDOM.uniform(size=(5, 30)).astype(np.float32)
NLL = RANDOM.uniform(1, 3, size=(2, 5, 30)).astype(np.float32)
SAME = RANDOM.uniform(size=(5, 30)) < 0.8


def test_figures() -> None:
    figures = summarize(KL, NLL[0], NLL[1], SAME)
    assert figures.kl_mean == pytest.approx(KL.mean())
    assert figures.kl_standard_error == pytest.approx(KL.mean(1).std(ddof=1) / math.sqrt(5))
    assert figures.perplexity_original == pytest.approx(math.exp(NLL[0].mean()))
    assert figures.perplexity_quantized == pytest.approx(math.exp(NLL[1].mean()))
    assert figures.perplexity_increase == pytest.approx(
        math.exp(NLL[1].mean() - NLL[0].mean()) - 1, rel=1e-5
    )
    assert figures.top1_agreement == pytest.approx(SAME.mean())
    assert figures.not_finite == 0


def test_a_single_window_has_the_error_of_its_positions() -> None:
    figures = summarize(KL[:1], NLL[0, :1], NLL[1, :1], SAME[:1])
    assert figures.kl_standard_error == pytest.approx(KL[0].std(ddof=1) / math.sqrt(30))


def test_positions_that_are_not_finite_are_counted() -> None:
    kl, nll = KL.copy(), NLL[1].copy()
    kl[0, 3], nll[0, 3], nll[2, 5] = float("nan"), float("nan"), float("inf")
    figures = summarize(kl, NLL[0], nll, SAME)
    assert figures.not_finite == 2
    assert math.isnan(figures.kl_mean)


def test_a_huge_loss_gives_an_infinite_perplexity() -> None:
    figures = summarize(KL, NLL[0], NLL[1] + 1e4, SAME)
    assert figures.perplexity_quantized == math.inf


def test_several_gpus_are_part_of_what_decides_the_predictions() -> None:
    windows = Windows(np.zeros((2, 8), np.int64), "text", False, "sha256:1", {})
    windowed = Receipt(step="windows", key="1" * 64, code={}, parameters={}, inputs={}, files={})
    setting = Setting(
        EngineChoice("vllm", "1"),
        "cuda",
        "bfloat16",
        windows,
        windowed,
        Tokenizer(BPE()),
        (),
        4,
        {},
    )
    assert "tensor_parallel_size" not in setting.parameters()
    spread = dataclasses.replace(setting, tensor_parallel_size=2)
    assert spread.parameters() == setting.parameters() | {"tensor_parallel_size": 2}
