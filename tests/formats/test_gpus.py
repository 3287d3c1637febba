import pytest

from quantlib.formats.gpus import on_gpu
from quantlib.schemes import SCHEMES, LinearScheme


def lacks(name: str, capability: int) -> str:
    scheme = SCHEMES[name]
    weights = {"group_size": 128, **scheme["weights"]}
    return on_gpu(LinearScheme.model_validate({**scheme, "weights": weights}), capability) or ""


@pytest.mark.parametrize(
    ("name", "served", "lacking", "what"),
    [
        ("FP8_DYNAMIC", 89, 80, "multiplies no FP8: vLLM serves the weights as they are (Marlin)"),
        ("FP8_BLOCK", 90, 86, "multiplies no FP8"),
        ("NVFP4", 100, 90, "multiplies no FP4"),
        ("MXFP4", 103, 89, "multiplies no FP4"),
        ("MXFP8", 100, 90, "multiplies no MXFP8"),
        ("W4AFP8", 90, 100, "on Hopper GPUs only, and refuses"),
        ("W8A8", 90, 100, "has no int8 on Blackwell GPUs, and fails when it starts"),
    ],
)
def test_what_a_generation_lacks_is_said(name: str, served: int, lacking: int, what: str) -> None:
    assert lacks(name, served) == ""
    assert what in lacks(name, lacking)


@pytest.mark.parametrize("name", ["W4A16", "W8A16", "NVFP4A16", "MXFP4A16"])
def test_what_every_gpu_serves_needs_no_word(name: str) -> None:
    assert not any(lacks(name, capability) for capability in (80, 86, 89, 90, 100))


def test_two_bits_need_a_package() -> None:
    assert "humming-kernels is installed" in lacks("W2A16", 90)


def test_four_bits_leave_inputs_of_eight_in_sixteen() -> None:
    assert "leaves inputs in 16 bits" in lacks("W4A8", 90)
