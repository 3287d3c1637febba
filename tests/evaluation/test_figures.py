"""Figures of a comparison, and their errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantlib.evaluation.figures import Compared, Figure, summarize
from quantlib.evaluation.limits import LEAST_ROUNDING

RANDOM = np.random.default_rng(0)
KL = RANDOM.uniform(size=(5, 30)).astype(np.float32)
NLL = RANDOM.uniform(1, 3, size=(2, 5, 30)).astype(np.float32)
SAME = RANDOM.uniform(size=(5, 30)) < 0.8
ALL = np.ones((5, 30), bool)
FOUND = Compared(KL, NLL[0], NLL[1], SAME)


def test_figures() -> None:
    figures = summarize(FOUND, ALL)
    assert figures.kl.value == pytest.approx(KL.mean())
    assert figures.kl.error == pytest.approx(KL.mean(1).std(ddof=1) / math.sqrt(5))
    assert figures.kl.high == pytest.approx(figures.kl.value + 2 * figures.kl.error)
    assert figures.kl.low == pytest.approx(figures.kl.value - 2 * figures.kl.error)
    assert figures.perplexity_original == pytest.approx(math.exp(NLL[0].mean()))
    assert figures.perplexity_quantized == pytest.approx(math.exp(NLL[1].mean()))
    increase = figures.perplexity_quantized / figures.perplexity_original - 1
    assert figures.perplexity_increase.value == pytest.approx(increase, rel=1e-5)
    apart = (NLL[1] - NLL[0]).mean(1)
    assert figures.perplexity_increase.error == pytest.approx(
        math.exp(apart.mean()) * apart.std(ddof=1) / math.sqrt(5), rel=1e-5
    )
    assert figures.top1.value == pytest.approx(SAME.mean())
    assert figures.top1.error == pytest.approx(SAME.mean(1).std(ddof=1) / math.sqrt(5))
    assert (figures.not_finite, figures.windows) == (0, 5)
    assert figures.times_rounding is None
    assert figures.rounding_kl is None


def test_figures_go_by_the_names_that_commands_give_them() -> None:
    named = summarize(FOUND, ALL).by_name()
    assert named["kl_mean"] == pytest.approx(KL.mean())
    assert "kl_rounding" not in named
    assert summarize(FOUND, ALL, KL * 2).by_name()["kl_rounding"] == pytest.approx(2 * KL.mean())


def test_what_two_models_share_on_a_window_is_no_error_of_their_ratio() -> None:
    figures = summarize(FOUND, ALL, KL * 4)
    assert figures.times_rounding is not None
    assert figures.times_rounding.value == pytest.approx(0.25)
    assert figures.times_rounding.error == pytest.approx(0, abs=1e-7)
    uneven = KL * np.array([1, 2, 3, 4, 5])[:, None]
    found = summarize(FOUND, ALL, uneven).times_rounding
    assert found is not None
    assert found.error > 0.02


def test_rounding_that_costs_nothing_is_taken_to_cost_a_little() -> None:
    tiny = Compared(np.full_like(KL, 1e-4), NLL[0], NLL[1], SAME)
    found = summarize(tiny, ALL, np.full_like(KL, 1e-5)).times_rounding
    assert found is not None
    assert found.value == pytest.approx(1e-4 / LEAST_ROUNDING, rel=1e-5)


def test_a_single_window_has_the_error_of_its_positions() -> None:
    single = Compared(KL[:1], NLL[0, :1], NLL[1, :1], SAME[:1])
    figures = summarize(single, ALL[:1])
    assert figures.kl.error == pytest.approx(KL[0].std(ddof=1) / math.sqrt(30))


def test_positions_that_predict_nothing_are_left_out_and_have_to_be_finite() -> None:
    predicted = RANDOM.uniform(size=(5, 30)) < 0.9
    kl, nll, same = KL.copy(), NLL.copy(), SAME.copy()
    for values in (kl, nll[0], nll[1]):
        values[~predicted] = 25.0
    same[~predicted] = True
    figures = summarize(Compared(kl, nll[0], nll[1], same), predicted)
    rows = [row[counts] for row, counts in zip(KL, predicted, strict=True)]
    assert figures.kl.value == pytest.approx(np.concatenate(rows).mean())
    means = np.array([row.mean() for row in rows])
    assert figures.kl.error == pytest.approx(means.std(ddof=1) / math.sqrt(5))
    assert figures.perplexity_original == pytest.approx(math.exp(NLL[0][predicted].mean()))
    assert figures.perplexity_quantized == pytest.approx(math.exp(NLL[1][predicted].mean()))
    assert figures.top1.value == pytest.approx(SAME[predicted].mean())
    single = summarize(Compared(kl[:1], nll[0, :1], nll[1, :1], same[:1]), predicted[:1])
    assert single.kl.error == pytest.approx(rows[0].std(ddof=1) / math.sqrt(len(rows[0])))
    kl[tuple(np.argwhere(~predicted)[0])] = np.nan
    assert summarize(Compared(kl, nll[0], nll[1], same), predicted).not_finite == 1


def test_positions_that_are_not_finite_are_counted() -> None:
    kl, nll = KL.copy(), NLL[1].copy()
    kl[0, 3], nll[0, 3], nll[2, 5] = float("nan"), float("nan"), float("inf")
    figures = summarize(Compared(kl, NLL[0], nll, SAME), ALL)
    assert figures.not_finite == 2
    assert math.isnan(figures.kl.value)


def test_a_huge_loss_gives_an_infinite_perplexity() -> None:
    figures = summarize(Compared(KL, NLL[0], NLL[1] + 1e4, SAME), ALL)
    assert figures.perplexity_quantized == math.inf
    assert figures.perplexity_increase.value == math.inf


def test_windows_of_two_rounds_are_those_of_one() -> None:
    first, rest = (Compared(KL[s], NLL[0][s], NLL[1][s], SAME[s]) for s in (np.s_[:2], np.s_[2:]))
    assert summarize(first + rest, ALL) == summarize(FOUND, ALL)


def test_an_interval_is_two_errors_to_each_side() -> None:
    assert (Figure(1.0, 0.25).low, Figure(1.0, 0.25).high) == (0.5, 1.5)
