"""Experts that are quantized together get what each gets alone, in fewer operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from quantlib.errors import QuantizationError
from quantlib.models.folding import Fold
from quantlib.models.layout import Producer
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import BatchQuantizer, InputStatistics, QuantizedInput, quantizer_registry
from quantlib.quantizers.batches import experts_at_once, held_bytes
from quantlib.schemes import WeightScheme

ROWS = {"gate_proj": 48, "up_proj": 48}
COLUMNS = 256

METHODS = {
    "gptq": ("gptq", {}, True),
    "gptq, plainly": ("gptq", {"act_order": "none", "scale_search": "minmax"}, False),
    "awq": ("awq", {}, True),
    "awq, asymmetric": ("awq", {}, False),
    "hqq": ("hqq", {"iterations": 3}, False),
}


class Counter(TorchDispatchMode):
    """Counts the operations that torch is asked for, views of tensors aside."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = func(*args, **(kwargs or {}))
        first = next((arg for arg in args if isinstance(arg, Tensor)), None)
        view = (
            isinstance(given, Tensor)
            and first is not None
            and given is not first
            and given.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        )
        self.calls += not view
        return given


def quantizer_of(name: str) -> BatchQuantizer:
    method, options, symmetric = METHODS[name]
    section = QuantizationSection(
        method=method,
        options=options,
        weights=WeightScheme(bits=4, group_size=32, symmetric=symmetric),
        format="compressed-tensors",
    )
    found = quantizer_registry.get_quantizer(method)(section)
    assert isinstance(found, BatchQuantizer)
    return found


def experts(count: int, columns: int = COLUMNS) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """Weights, and Hessians: of few tokens, of none, one that is not definite, and plain ones."""
    generator = torch.Generator().manual_seed(0)
    weights, hessians = [], []
    for _ in range(count):
        weights.append(
            {name: torch.randn(rows, columns, generator=generator) for name, rows in ROWS.items()}
        )
        sizes = torch.randn(columns, generator=generator).exp()
        x = torch.randn(2 * columns, columns, generator=generator) * sizes
        hessians.append(x.t() @ x / len(x))
    few = x[:3]
    indefinite = torch.eye(columns)
    indefinite[0, 1] = indefinite[1, 0] = 1.5
    hessians[1:4] = [few.t() @ few / 3, torch.zeros(columns, columns), indefinite]
    return weights, hessians


def tensors(quantized: QuantizedInput) -> list[Tensor]:
    found = [] if quantized.input_scales is None else [quantized.input_scales]
    for linear in quantized.linears.values():
        found += [linear.codes, linear.scales]
        found += [] if linear.zero_points is None else [linear.zero_points]
    return found


def same(one: QuantizedInput, other: QuantizedInput) -> bool:
    assert list(one.linears) == list(other.linears) == list(ROWS)
    known = [(each.damping, each.damping_attempts) for each in (one, other)]
    pairs = zip(tensors(one), tensors(other), strict=True)
    return known[0] == known[1] and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_batch_gives_what_its_members_give_alone(name: str, folded: bool) -> None:
    quantizer = quantizer_of(name)
    weights, hessians = experts(7)
    fold: Any = None
    if folded:  # nothing of a block is looked at where a linear is what scales go into
        fold = Fold(None, Producer(name="up_proj"), torch.arange(COLUMNS))  # type: ignore[arg-type]
    inputs = [InputStatistics(hessian, fold) for hessian in hessians]
    alone = [
        quantizer.quantize(own, known, torch.bfloat16)
        for own, known in zip(weights, inputs, strict=True)
    ]
    for size in (3, 7):
        together = [
            quantized
            for start in range(0, 7, size)
            for quantized in quantizer.quantize_batch(
                weights[start : start + size], inputs[start : start + size], torch.bfloat16
            )
        ]
        assert [same(*pair) for pair in zip(alone, together, strict=True)] == [True] * 7
    assert (alone[0].input_scales is not None) == (folded and name.startswith("awq"))
    if name.startswith("gptq"):
        assert [quantized.damping_attempts for quantized in alone] == [1, 1, 1, 2, 1, 1, 1]
        assert [quantized.damping for quantized in alone] == [0.1] * 3 + [1.0] + [0.1] * 3


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_what_cannot_be_quantized_is_named(name: str) -> None:
    weights, hessians = experts(4)
    hessians[2][0, 0] = torch.inf
    weights[2] = {f"experts.2.{linear}": weight for linear, weight in weights[2].items()}
    with pytest.raises(QuantizationError, match=r"experts\.2\.gate_proj and experts\.2\.up_proj"):
        quantizer_of(name).quantize_batch(
            weights, list(map(InputStatistics, hessians)), torch.float32
        )


def operations(name: str, count: int) -> int:
    weights, hessians = experts(8)
    counter = Counter()
    with counter:
        quantizer_of(name).quantize_batch(
            weights[-count:], list(map(InputStatistics, hessians[-count:])), torch.bfloat16
        )
    return counter.calls


@pytest.mark.parametrize("name", ["gptq", "awq", "hqq"])
def test_a_batch_takes_hardly_more_operations_than_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator each is a launch, and launches are what the loop over columns takes."""
    monkeypatch.setattr("quantlib.quantizers.scales._CHUNK_ELEMENTS", 1 << 26)
    assert operations(name, 4) < 1.15 * operations(name, 1)


def peak(work: Callable[[], object]) -> int:
    """Bytes of tensors that work holds at its peak, above what there was."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = work()
    del kept
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    memory = sorted(
        (event for event in events if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    held = most = 0
    for event in memory:
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("name", ["gptq", "awq", "hqq"])
def test_a_batch_holds_no_more_than_was_reckoned(name: str) -> None:
    weights, hessians = experts(8, 512)
    stored = [{key: weight.half() for key, weight in own.items()} for own in weights]

    def work() -> Sequence[QuantizedInput]:
        wide = [{key: weight.float() for key, weight in own.items()} for own in stored]
        return quantizer_of(name).quantize_batch(
            wide, list(map(InputStatistics, hessians)), torch.bfloat16
        )

    given = sum(hessian.nbytes for hessian in hessians)
    assert 0 < peak(work) + given < 8 * held_bytes(sum(ROWS.values()), 512)


def test_as_many_experts_as_fit_are_quantized_together() -> None:
    small, large = ((64, 64), (64, 32)), ((3072, 4096), (4096, 1536))
    assert experts_at_once(small, "cpu") == (64 << 20) // held_bytes(64, 64) > 100
    assert experts_at_once(large, "cpu") == 1
    assert experts_at_once(large, "cuda") == (4 << 30) // held_bytes(3072, 4096) == 5
    assert experts_at_once([(28672, 7168)], "cuda") == 1
    assert experts_at_once([], "cuda") == 1
