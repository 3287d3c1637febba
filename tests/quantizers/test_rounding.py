import pytest
import torch

from quantlib.quantizers.rounding import round_input


def test_each_token_has_its_own_step() -> None:
    x = torch.tensor([[127.0, 0.4, -3.6], [1.27, 0.006, -1.27]])
    expected = torch.tensor([[127.0, 0.0, -4.0], [1.27, 0.01, -1.27]])
    torch.testing.assert_close(round_input(x, "int"), expected)
    assert torch.equal(round_input(torch.zeros(1, 4), "int"), torch.zeros(1, 4))


def test_one_step_for_all_tokens_saturates_beyond_its_range() -> None:
    x = torch.tensor([[0.24, 0.26, 100.0, -100.0]], dtype=torch.bfloat16)
    rounded = round_input(x, "int", torch.tensor([0.5]))
    assert rounded.dtype is torch.bfloat16
    assert rounded.tolist() == [[0.0, 0.5, 63.5, -64.0]]


def test_fp8_keeps_three_bits_of_mantissa() -> None:
    x = torch.tensor([[448.0, 17.0, 19.0, -1.06]])
    assert round_input(x, "float").tolist()[0] == pytest.approx([448.0, 16.0, 20.0, -1.0])
