"""The metrics against a plain float64 implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantlib.evaluation.metrics import compare, leads, next_token_logprobs


def reference_metrics(
    a: np.ndarray, b: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    def log_softmax(logits: np.ndarray) -> np.ndarray:
        shifted = logits - logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    p, q = log_softmax(a.astype(np.float64)), log_softmax(b.astype(np.float64))
    rows = np.arange(len(a))
    return (
        (np.exp(p) * (p - q)).sum(axis=1),
        -p[rows, targets],
        -q[rows, targets],
        a.argmax(axis=1) == b.argmax(axis=1),
    )


@pytest.mark.parametrize("noise", [0.01, 0.5, 5.0])
@pytest.mark.parametrize("positions", [1, 8, 29])
def test_agrees_with_float64(noise: float, positions: int) -> None:
    random = np.random.default_rng(positions)
    a = (random.normal(size=(positions, 4999)) * 4).astype(np.float32)
    b = (a + random.normal(size=a.shape) * noise).astype(np.float32)
    targets = random.integers(0, 4999, positions)

    found = compare(torch.tensor(a), torch.tensor(b), torch.tensor(targets))

    kl, reference_nll, candidate_nll, same_top1 = reference_metrics(a, b, targets)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-4, atol=3e-6)
    np.testing.assert_allclose(found.reference_nll, reference_nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.candidate_nll, candidate_nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.same_top1, same_top1)
    np.testing.assert_allclose(
        next_token_logprobs(torch.tensor(a), torch.tensor(targets)), -reference_nll, rtol=1e-5
    )


def test_equal_logits_do_not_diverge() -> None:
    logits = torch.randn(20, 1000) * 10
    found = compare(logits, logits.clone(), torch.zeros(20, dtype=torch.int64))
    assert found.kl.abs().max() < 1e-6
    assert found.same_top1.all()


def test_half_precision_logits_are_compared_in_float32() -> None:
    a, b = torch.randn(9, 300).bfloat16(), torch.randn(9, 300).bfloat16()
    targets = torch.arange(9)
    halves, singles = compare(a, b, targets), compare(a.float(), b.float(), targets)
    assert torch.equal(halves.kl, singles.kl)
    assert halves.kl.dtype == torch.float32


def test_inputs_are_left_alone() -> None:
    a, b = torch.randn(9, 300), torch.randn(9, 300)
    before = a.clone(), b.clone()
    compare(a, b, torch.arange(9))
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_large_logits_do_not_overflow() -> None:
    a, b = torch.zeros(1, 4), torch.zeros(1, 4)
    a[0, 0], b[0, 0] = 1e4, 2e4
    found = compare(a, b, torch.tensor([0]))
    assert found.kl.item() == 0
    assert found.candidate_nll.item() == 0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(wrong: float) -> None:
    a, b = torch.randn(3, 50), torch.randn(3, 50)
    b[1, 7] = wrong
    found = compare(a, b, torch.tensor([1, 2, 3]))
    assert found.kl.isfinite().tolist() == [True, False, True]
    assert found.candidate_nll.isfinite().tolist() == [True, False, True]
    assert not found.same_top1[1]


def test_leads_are_differences_of_log_likelihoods() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, -1.0, 4.75]], dtype=torch.bfloat16)
    found = leads(logits)
    assert found.tokens.tolist() == [1, 0]
    assert found.margins.tolist() == [2.0, 0.25]
    best = logits.float().log_softmax(1).sort(dim=1, descending=True).values
    np.testing.assert_allclose(found.margins, best[:, 0] - best[:, 1], atol=1e-6)
