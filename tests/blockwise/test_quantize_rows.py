"""A matrix of many rows, some at a time, is what it is at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quantlib.blockwise import quantize_rows as module
from quantlib.blockwise.quantize_rows import quantize_rows
from quantlib.formats import format_registry
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import InputStatistics, quantizer_registry
from quantlib.schemes import SCHEMES, WeightScheme

ROWS, COLUMNS = 400, 64
HELD = [
    ("gptq", "W4A16"),
    ("gptq", "W8A16"),
    ("awq", "W4A16"),
    ("awq", "W4A16_ASYM"),
    *(("compressed-tensors", name) for name in SCHEMES if name not in ("FP8_BLOCK", "W4AFP8")),
]


@pytest.mark.parametrize("method", ["minmax", "gptq"])
@pytest.mark.parametrize(("format_name", "scheme_name"), HELD, ids="-".join)
def test_pieces_make_what_the_whole_makes(
    format_name: str, scheme_name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS, generator=generator).bfloat16()
    tokens = torch.randn(200, COLUMNS, generator=generator) + 0.5
    inputs = InputStatistics(tokens.t() @ tokens / 200)
    scheme = SCHEMES[scheme_name]
    section = QuantizationSection(
        method=method,
        format=format_name,
        weights=WeightScheme(**{"group_size": 32} | scheme["weights"]),
        activations=scheme["activations"],
    )
    quantizer = quantizer_registry.get_quantizer(method)(section)
    made_by = format_registry.get_format(format_name)
    step = torch.tensor([0.5]) if "static" in scheme["activations"] else None
    read: list[int] = []

    def rows(start: int, stop: int) -> Tensor:
        read.append(stop - start)
        return weight[start:stop]

    monkeypatch.setattr(module, "PIECE_ELEMENTS", 130 * COLUMNS)
    found = quantize_rows(
        "lm_head", (ROWS, COLUMNS), rows, quantizer, made_by, inputs, step, torch.bfloat16
    )
    assert max(read) == 128
    linear = quantizer.quantize({"x": weight.float()}, inputs, torch.bfloat16).linears["x"]
    expected = made_by.tensors(replace(linear, input_scale=step), scheme["activations"])
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found.tensors[name].dtype == tensor.dtype, name
        assert found.tensors[name].tolist() == tensor.tolist(), name
    change = linear.dequantize() - weight.float()
    changed, whole = tokens @ change.t(), tokens @ weight.float().t()
    wanted = float(changed.square().sum() / whole.square().sum())
    assert found.relative_error == pytest.approx(wanted, rel=1e-3)
    assert found.relative_weight_error == pytest.approx(
        float(change.square().sum() / weight.float().square().sum()), rel=1e-3
    )
