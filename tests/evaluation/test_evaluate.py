"""Figures of a comparison."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from quantlib.evaluation.choose_engine import EngineChoice
from quantlib.evaluation.evaluate import Setting, summarize
from quantlib.store import Receipt
from quantlib.text.windows import Windows

RANDOM = np.random.default_rng(0)
KL = RANDOM.uniform(size=(5, 30)).astype(np.float32)
NLL = RANDOM.uniform(1, 3, size=(2, 5, 30)).astype(np.float32)
SAME = RANDOM.uniform(size=(5, 30)) < 0.8
ALL = np.ones((5, 30), bool)


def test_figures() -> None:
    figures = summarize(KL, NLL[0], NLL[1], SAME, ALL)
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
    figures = summarize(KL[:1], NLL[0, :1], NLL[1, :1], SAME[:1], ALL[:1])
    assert figures.kl_standard_error == pytest.approx(KL[0].std(ddof=1) / math.sqrt(30))


def test_positions_that_predict_nothing_are_left_out_and_have_to_be_finite() -> None:
    predicted = RANDOM.uniform(size=(5, 30)) < 0.9
    kl, nll, same = KL.copy(), NLL.copy(), SAME.copy()
    for values in (kl, nll[0], nll[1]):
        values[~predicted] = 25.0
    same[~predicted] = True
    figures = summarize(kl, nll[0], nll[1], same, predicted)
    rows = [row[counts] for row, counts in zip(KL, predicted, strict=True)]
    assert figures.kl_mean == pytest.approx(np.concatenate(rows).mean())
    means = np.array([row.mean() for row in rows])
    assert figures.kl_standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(5))
    assert figures.perplexity_original == pytest.approx(math.exp(NLL[0][predicted].mean()))
    assert figures.perplexity_quantized == pytest.approx(math.exp(NLL[1][predicted].mean()))
    assert figures.top1_agreement == pytest.approx(SAME[predicted].mean())
    single = summarize(kl[:1], nll[0, :1], nll[1, :1], same[:1], predicted[:1])
    assert single.kl_standard_error == pytest.approx(rows[0].std(ddof=1) / math.sqrt(len(rows[0])))
    kl[tuple(np.argwhere(~predicted)[0])] = np.nan
    assert summarize(kl, nll[0], nll[1], same, predicted).not_finite == 1


def test_what_opens_a_document_is_not_predicted() -> None:
    tokens = np.array([[7, 1, 2, 7, 3], [7, 4, 5, 6, 1]])
    opened = Windows(tokens, "text", False, "sha256:1", {}, ("<s>",))
    assert opened.predicted.tolist() == [[True, True, False, True], [True] * 4]
    assert dataclasses.replace(opened, opening=()).predicted.all()


def test_positions_that_are_not_finite_are_counted() -> None:
    kl, nll = KL.copy(), NLL[1].copy()
    kl[0, 3], nll[0, 3], nll[2, 5] = float("nan"), float("nan"), float("inf")
    figures = summarize(kl, NLL[0], nll, SAME, ALL)
    assert figures.not_finite == 2
    assert math.isnan(figures.kl_mean)


def test_a_huge_loss_gives_an_infinite_perplexity() -> None:
    figures = summarize(KL, NLL[0], NLL[1] + 1e4, SAME, ALL)
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
