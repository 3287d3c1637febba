"""The steps on a simulated accelerator: no tensor is left on the CPU, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from accelerator import DEVICE, DeviceMismatchError, DeviceTensor, simulated_accelerator
from torch import Tensor

import images
from quantlib.blockwise.statistics import HessianAccumulator
from quantlib.checkpoint.source import ReceiptSource
from quantlib.checkpoint.tensors import read_tensors
from quantlib.runtime.devices import batch_samples
from quantlib.store import LocalStore

W4 = {"group_size": 32}
W8 = {"bits": 8, "group_size": -1}
SMOOTH = {
    "method": "smooth_quant",
    "options": {"alpha": "auto", "pairs": ["norms", "value_output", "up_down"]},
}
RECIPES: dict[str, dict[str, Any]] = {
    "gptq": {"quantization": {"weights": W4}},
    "packed": {"quantization": {"weights": W4, "format": "compressed-tensors"}},
    "awq": {"quantization": {"method": "awq", "weights": W4}},
    "hqq": {"quantization": {"method": "hqq", "weights": W4 | {"symmetric": False}}},
    "smooth_quant": {
        "quantization": {"method": "minmax", "weights": W8, "activations": "int8"},
        "outlier_suppression": SMOOTH,
    },
    "static": {
        "quantization": {
            "weights": W8,
            "activations": "int8-static",
            "options": {"act_order": "none"},
        },
        "outlier_suppression": SMOOTH,
    },
    "fp8": {
        "quantization": {
            "method": "minmax",
            "weights": W8 | {"type": "float"},
            "activations": "fp8",
        },
    },
}
COVERED = [
    *(("llama", recipe) for recipe in RECIPES),
    *(("gemma3_text", recipe) for recipe in ("gptq", "smooth_quant")),
    *(("qwen3_moe", recipe) for recipe in ("packed", "awq", "hqq", "smooth_quant", "fp8")),
    ("qwen3_next", "packed"),
    ("granitemoehybrid", "smooth_quant"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model of a family, made once."""
    parent = tmp_path_factory.mktemp("zoo")

    def make(family: str) -> Path:
        folder = parent / family
        return folder if folder.exists() else zoo.make(family, folder)

    return make


@pytest.fixture
def as_on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that cuts batches and sums Hessians as an accelerator does."""
    add = HessianAccumulator.add
    monkeypatch.setattr(HessianAccumulator, "add", lambda self, x: add(self, x.float()))
    monkeypatch.setattr(
        "quantlib.models.streamed.batch_samples", lambda _, length: batch_samples(DEVICE, length)
    )


def tensors_of(run: Any) -> dict[str, Tensor]:
    return read_tensors(ReceiptSource(run.store, run.quantized[0]), "blocks.safetensors")


@pytest.mark.slow
@pytest.mark.usefixtures("bfloat16_products", "as_on_device")
@pytest.mark.parametrize(("family", "recipe"), COVERED)
def test_steps_give_what_they_give_on_a_cpu(
    family: str,
    recipe: str,
    made: Callable[[str], Path],
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Exactly, where the CPU cuts batches and sums Hessians in the same way."""
    wanted = small_recipe(**RECIPES[recipe])
    on_cpu = run_steps(LocalStore(tmp_path / "cpu"), wanted, made(family))
    with simulated_accelerator() as accelerator:
        on_device = run_steps(LocalStore(tmp_path / "device"), wanted, made(family), str(DEVICE))
    assert accelerator.calls.total() > 100
    expected, found = tensors_of(on_cpu), tensors_of(on_device)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.slow
@pytest.mark.usefixtures("bfloat16_products", "as_on_device")
def test_rows_with_images_give_what_they_give_on_a_cpu(
    small_recipe: Callable[..., Any], run_steps: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("torchvision")
    # Positions of Qwen3-VL are made by torch.tensor of tensors, which is not simulated.
    model = images.make("gemma3_images", tmp_path / "model", chat_template=True)
    text = {"dataset": str(images.write_text(tmp_path / "text")), "num_samples": 16}
    wanted = small_recipe(calibration=text, num_ranges=2)
    on_cpu = run_steps(LocalStore(tmp_path / "cpu"), wanted, model)
    with simulated_accelerator():
        on_device = run_steps(LocalStore(tmp_path / "device"), wanted, model, str(DEVICE))
    for place, found in zip(on_cpu.quantized, on_device.quantized, strict=True):
        expected = read_tensors(ReceiptSource(on_cpu.store, place), "blocks.safetensors")
        tensors = read_tensors(ReceiptSource(on_device.store, found), "blocks.safetensors")
        assert expected.keys() == tensors.keys()
        assert [name for name in expected if not torch.equal(expected[name], tensors[name])] == []


def test_the_device_refuses_tensors_of_the_cpu() -> None:
    with simulated_accelerator():
        x = torch.ones(3, 4, device=DEVICE)
        for operation in (
            lambda: x + torch.ones(4),
            lambda: x @ torch.ones(4, 2),
            lambda: torch.where(x > 0, x, torch.zeros(3, 4)),
            lambda: x[torch.tensor([0, 1])],
            lambda: torch.ones(3)[torch.tensor([0], device=DEVICE)],
            lambda: x.index_add_(0, torch.tensor([1]), torch.ones(1, 4, device=DEVICE)),
            lambda: torch.cat([x, torch.ones(1, 4)]),
        ):
            with pytest.raises(DeviceMismatchError):
                operation()
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()
        assert (x + torch.tensor(1.0)).device == DEVICE  # a number may be anywhere
        assert isinstance(x + 1, DeviceTensor)


def test_the_device_computes_as_torch_does() -> None:
    with simulated_accelerator():
        x = torch.arange(12.0).reshape(3, 4).to(DEVICE)
        view = x[1:, [0, 2]]
        assert torch.equal(view.cpu(), torch.tensor([[4.0, 6.0], [8.0, 10.0]]))
        x[0].fill_(1)
        x[:, 1:2] *= 2
        assert x.to(DEVICE) is x
        assert x.tolist() == [[1, 2, 1, 1], [4, 10, 6, 7], [8, 18, 10, 11]]
        assert float(x.sum()) == 79
        into = torch.empty_like(x)
        assert torch.mul(x, 2, out=into) is into
        assert into.cpu().sum() == 158
        assert x.to("meta").device.type == "meta"
        assert torch.zeros(2, device="meta").is_meta
        kept = torch.nn.Parameter(x, requires_grad=False)
        assert kept.device == DEVICE
        assert torch.einsum("ij,kj->ik", x, x).cpu().diagonal()[0] == 7
