"""Devices that models cannot be computed on, told before any work."""

import pytest

from quantlib.errors import InvalidInputError
from quantlib.runtime.devices import resolve_device


def test_a_device_with_a_number_is_one_gpu() -> None:
    with pytest.raises(InvalidInputError) as caught:
        resolve_device("cuda:1", 2)
    assert [str(problem) for problem in caught.value.problems] == [
        "device 'cuda:1': is one GPU, and models are to be spread over 2; use cuda, of which "
        "CUDA_VISIBLE_DEVICES says which, or cuda:1 with one GPU"
    ]
    assert resolve_device("cpu", 2).type == "cpu"
