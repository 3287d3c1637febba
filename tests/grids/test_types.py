"""Types of numbers as a package adds them: their grids, codes, schemes and inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch

from quantlib.checks.recipe import parse_recipe
from quantlib.errors import InvalidInputError
from quantlib.formats.gpus import HOPPER, on_gpu
from quantlib.formats.packing import E2M1, pack_floats, unpack_floats
from quantlib.grids import FloatType, Inputs, number_types
from quantlib.numbers.grid import grid_of, range_factors
from quantlib.numbers.inputs import round_input
from quantlib.numbers.scaling import encode_scales, nearest_scales
from quantlib.scheme_rules import SchemeRule
from quantlib.schemes import ACTIVATIONS, SCHEMES, LinearScheme, WeightScheme

GROUPS = {"bits": 6, "group_size": 32, "scale": "e8m0"}


class E3M2(FloatType):
    """FP6: OCP Microscaling Formats 1.0, 5.3.2."""

    bits = (6,)
    lowest, mantissa, largest = -2, 2, 28.0
    inputs: ClassVar = {"fp6": Inputs("FP6, in groups of 32", {"type": "e3m2", **GROUPS})}
    schemes: ClassVar = {"MXFP6": {"weights": {"type": "e3m2", **GROUPS}, "activations": "fp6"}}


@pytest.fixture
def e3m2() -> Iterator[WeightScheme]:
    """The type, known for the time of a test."""
    number_types.register("e3m2")(E3M2)
    yield WeightScheme(type="e3m2", **GROUPS)
    del number_types._parts["e3m2"]


def test_codes_are_in_the_order_of_the_standard(e3m2: WeightScheme) -> None:
    values = grid_of(e3m2).by_code()
    assert len(values) == 64
    # OCP Microscaling Formats 1.0, table 5: largest normal, smallest normal, subnormals.
    assert values[0b011111] == 28
    assert values[0b000100] == 0.25
    assert values[1:4] == (0.0625, 0.125, 0.1875)
    assert values[0b100100] == -0.25
    assert grid_of(WeightScheme(type="float", bits=4)).by_code() == E2M1


def test_the_nearest_value_is_that_of_least_distance(e3m2: WeightScheme) -> None:
    values = torch.tensor(grid_of(e3m2).by_code())
    x = torch.cat([torch.randn(4000) * 8, torch.randn(4000) / 8])
    got = grid_of(e3m2).nearest(x, torch.zeros(()))
    least = (x[:, None] - values).abs().amin(1)
    assert torch.equal((x - got).abs(), least)
    assert torch.equal(got, got.to(torch.float8_e4m3fn).float())


def test_four_codes_of_six_bits_lie_in_three_bytes(e3m2: WeightScheme) -> None:
    values = grid_of(e3m2).by_code()
    codes = (1, 34, 63, 4)
    numbers = torch.tensor([values[code] for code in codes])
    word = sum(code << 6 * place for place, code in enumerate(codes))
    packed = pack_floats(numbers, values)
    assert bytes(packed.tolist()) == word.to_bytes(3, "little")
    assert torch.equal(unpack_floats(packed, values).float(), numbers)


@pytest.mark.parametrize(
    ("largest", "exponent"), [(28.0, 0), (29.9, 0), (30.0, 1), (14.9, -1), (15.0, 0)]
)
def test_a_scale_is_the_least_power_that_leaves_no_weight_outside(
    e3m2: WeightScheme, largest: float, exponent: int
) -> None:
    scales = nearest_scales(torch.tensor(largest), e3m2, grid_of(e3m2), torch.bfloat16, None)
    assert scales == 2.0**exponent
    assert encode_scales(scales, e3m2, torch.bfloat16, None) == 127 + exponent
    assert range_factors(e3m2)[0] == 1


def test_schemes_and_inputs_are_known_by_the_names_that_it_brings(e3m2: WeightScheme) -> None:
    assert SchemeRule(scheme="MXFP6").linear_scheme() == LinearScheme(
        weights=e3m2, activations="fp6"
    )
    assert LinearScheme(weights=e3m2, activations="fp6").words == "MXFP6"
    assert not LinearScheme(weights=e3m2, activations="fp6").is_static
    x = torch.randn(3, 64)
    rounded = round_input(x, "fp6").unflatten(1, (2, 32))
    scales = 2.0 ** torch.frexp(x.unflatten(1, (2, 32)).abs().amax(2, keepdim=True) / 30)[1]
    on_grid = torch.isin(rounded / scales, torch.tensor(grid_of(e3m2).by_code()))
    assert on_grid.all()


def test_nothing_is_said_of_a_gpu_that_nobody_knows_kernels_of(e3m2: WeightScheme) -> None:
    assert on_gpu(LinearScheme(weights=e3m2, activations="fp6"), HOPPER) is None


def test_they_are_gone_with_it() -> None:
    assert "MXFP6" not in SCHEMES
    assert "fp6" not in ACTIVATIONS


def test_names_that_ship_cannot_be_brought(e3m2: WeightScheme) -> None:
    twice = type("Twice", (E3M2,), {"schemes": {"NVFP4": E3M2.schemes["MXFP6"]}, "inputs": {}})
    number_types.register("twice")(twice)
    try:
        with pytest.raises(ValueError, match="NVFP4, which twice brings, is known already"):
            SCHEMES["NVFP4"]
    finally:
        del number_types._parts["twice"]


def test_what_a_type_does_not_have_is_said(e3m2: WeightScheme) -> None:
    weights = {"type": "e3m2", **GROUPS, "bits": 4}
    with pytest.raises(InvalidInputError) as refused:
        parse_recipe({"quantization": {"method": "minmax", "weights": weights}})
    assert "the type e3m2 does not support 4; supported: 6" in str(refused.value)
    with pytest.raises(InvalidInputError) as refused:
        parse_recipe({"quantization": {"weights": weights | {"type": "e3m3"}}})
    assert "is no type of numbers; did you mean e3m2? known: e3m2, float, int" in str(refused.value)
