from importlib.util import find_spec

import pytest
import torch
from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales

from quantlib.numbers.inputs import input_scale, round_as_calibrated, round_input


def test_each_token_has_its_own_step() -> None:
    x = torch.tensor([[127.0, 0.4, -3.6], [1.27, 0.006, -1.27]])
    expected = torch.tensor([[127.0, 0.0, -4.0], [1.27, 0.01, -1.27]])
    torch.testing.assert_close(round_input(x, "int8"), expected)
    assert torch.equal(round_input(torch.zeros(1, 4), "int8"), torch.zeros(1, 4))


def test_one_step_for_all_tokens_saturates_beyond_its_range() -> None:
    x = torch.tensor([[0.24, 0.26, 100.0, -100.0]], dtype=torch.bfloat16)
    rounded = round_input(x, "int8-static", torch.tensor([0.5]))
    assert rounded.dtype is torch.bfloat16
    assert rounded.tolist() == [[0.0, 0.5, 63.5, -64.0]]


def test_fp8_keeps_three_bits_of_mantissa() -> None:
    x = torch.tensor([[448.0, 17.0, 19.0, -1.06]])
    assert round_input(x, "fp8").tolist()[0] == pytest.approx([448.0, 16.0, 20.0, -1.0])


def test_groups_of_channels_have_steps_of_their_own() -> None:
    x = torch.ones(2, 256)
    x[:, 128:] = 1000.0
    x[0, 0] = 448.0
    assert torch.equal(round_input(x, "fp8-group"), x)
    x[1, 1] = 0.001  # 1 / 448 of its group's largest is the step
    rounded = round_input(x, "fp8-group")
    assert rounded[1, 1].item() == pytest.approx(0.001, rel=0.07)
    assert round_input(x, "fp8")[1, 1].item() == pytest.approx(0.0, abs=0.005)


@pytest.mark.parametrize(("activations", "bits"), [("mxfp4", 4), ("mxfp8", 8)])
def test_microscaling_is_that_of_compressed_tensors(activations: str, bits: int) -> None:
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).bfloat16() * 3
    groups = x.float().unflatten(-1, (-1, 32))
    exponents = generate_mx_scales(groups.abs().amax(-1), bits) - 127
    scales = torch.exp2(exponents)[..., None]
    limit, dtype = (448.0, torch.float8_e4m3fn) if bits == 8 else (6.0, None)
    values = (groups / scales).clamp(-limit, limit)
    if dtype is not None:
        expected = values.to(dtype).float() * scales
    else:
        levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        nearest = (values.abs()[..., None] - levels).abs().argmin(-1)
        expected = levels[nearest] * values.sign() * scales
    found = round_input(x, activations).float().unflatten(-1, (-1, 32))
    same = found == expected
    assert same.float().mean() > (0.999 if bits == 8 else 0.97)  # ties go to even
    assert ((found - expected).abs() <= scales).all()


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
def test_nvfp4_is_that_of_vllm() -> None:
    from vllm.model_executor.layers.quantization.utils.nvfp4_emulation_utils import (
        ref_nvfp4_quant_dequant,
    )

    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) * 3
    x[0] = 0
    overall = input_scale(float(x.abs().max()), "nvfp4")
    assert overall.tolist() == pytest.approx([448 * 6 / float(x.abs().max())])
    expected = ref_nvfp4_quant_dequant(x, overall, 16)
    torch.testing.assert_close(round_input(x, "nvfp4", overall), expected, rtol=1e-5, atol=1e-6)
    # What is larger than in calibration saturates.
    assert float(round_input(10 * x, "nvfp4", overall).abs().max()) == pytest.approx(
        float(x.abs().max()), rel=1e-5
    )


def test_static_steps_make_the_largest_input_the_largest_number() -> None:
    assert input_scale(12.7, "int8-static").tolist() == pytest.approx([0.1])
    assert input_scale(44.8, "fp8-static").tolist() == pytest.approx([0.1])
    assert input_scale(0.0, "fp8-static").item() > 0
    x = torch.tensor([[44.8, -1.7, 100.0]])
    rounded = round_input(x, "fp8-static", torch.tensor([0.1]))
    assert rounded.tolist()[0] == pytest.approx([44.8, -1.6, 44.8], rel=1e-5)


def test_only_static_steps_go_by_the_largest_of_calibration() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    for activations in ("fp8-static", "nvfp4"):
        step = input_scale(5.0, activations)
        found = round_as_calibrated(x, activations, 5.0)
        assert torch.equal(found, round_input(x, activations, step))
        assert not torch.equal(found, round_as_calibrated(x, activations, 2.0))
    assert torch.equal(round_as_calibrated(x, "int8", 5.0), round_input(x, "int8"))
    assert torch.equal(round_as_calibrated(x, "none", 5.0), x)
