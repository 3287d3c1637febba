"""What vLLM's own loaders make of quantized experts.

vLLM has no kernel for them on a CPU without AMX. It builds the model, chooses the method for the
experts and stacks our tensors as on a GPU; then, in place of preparing them for a kernel, the
stacked codes are multiplied out here and given to its method for exact experts. Predictions are
then compared as everywhere.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import assert_served_as_meant, reference_logprobs, served_logprobs

from quantlib.store import LocalStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform"),
]

PREPARATION = """
import torch
from vllm.model_executor.layers.fused_moe import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend
from vllm.model_executor.layers.quantization import auto_awq, auto_gptq
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_wna16 as compressed,
)

def unpack(words, order=range(8)):
    places = 4 * torch.tensor(list(order), dtype=torch.int32)
    return ((words[..., None] >> places) & 15).flatten(-2).float()

def weight(codes, zeros, scales):
    groups = codes.unflatten(-1, (scales.shape[-1], -1))
    return ((groups - zeros[..., None]) * scales.float()[..., None]).flatten(-2).bfloat16()

def of_compressed(layer, name):
    scales = getattr(layer, f"{name}_weight_scale")
    zeros = getattr(layer, f"{name}_weight_zero_point", None)
    zeros = torch.full_like(scales, 8) if zeros is None else unpack(zeros.mT).mT
    return weight(unpack(getattr(layer, f"{name}_weight_packed")), zeros, scales)

def of_gptq(layer, name):
    scales, zeros = getattr(layer, f"{name}_scales").mT, getattr(layer, f"{name}_qzeros")
    return weight(unpack(getattr(layer, f"{name}_qweight").mT), unpack(zeros).mT + 1, scales)

def of_awq(layer, name):
    order = (0, 4, 1, 5, 2, 6, 3, 7)
    scales, zeros = getattr(layer, f"{name}_scales").mT, getattr(layer, f"{name}_qzeros")
    codes = unpack(getattr(layer, f"{name}_qweight"), order)
    return weight(codes.mT, unpack(zeros, order).mT, scales)

def prepare_with(dequantize):
    def process_weights_after_loading(self, layer):
        w13, w2 = dequantize(layer, "w13"), dequantize(layer, "w2")
        for name in list(layer._parameters):
            delattr(layer, name)
        exact = UnquantizedFusedMoEMethod(layer.moe_config)
        exact.create_weights(layer, len(w2), w2.shape[1], w2.shape[2], torch.bfloat16)
        layer.w13_weight.data.copy_(w13)
        layer.w2_weight.data.copy_(w2)
        layer._replace_quant_method(exact)
        exact.process_weights_after_loading(layer)
    return process_weights_after_loading

for module, method, dequantize in (
    (compressed, compressed.CompressedTensorsWNA16MoEMethod, of_compressed),
    (auto_gptq, auto_gptq.AutoGPTQMoEMethod, of_gptq),
    (auto_awq, auto_awq.AutoAWQMoEMethod, of_awq),
):
    module.select_wna16_moe_backend = lambda *_, **__: (WNA16MoEBackend.MARLIN, None)
    method.process_weights_after_loading = prepare_with(dequantize)
"""

# vLLM's kernels need a hidden size that 128 divides. With every expert chosen for every token, no
# token goes elsewhere because scores were rounded.
SIZES = {"hidden_size": 128, "initializer_range": 0.1, "num_hidden_layers": 3}
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 4}
QWEN = {
    "num_experts": 6,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 64,
    "mlp_only_layers": [1],
}
CT = {"format": "compressed-tensors"}
ASYMMETRIC = {"weights": {"bits": 4, "group_size": 32, "symmetric": False}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral-gptq": ("mixtral", {}),
    "mixtral-packed-asymmetric": ("mixtral", CT | ASYMMETRIC),
    "mixtral-packed-layers": ("mixtral", CT | {"layers": [0, 2]}),
    "mixtral-awq": ("mixtral", {"method": "awq"} | ASYMMETRIC),
    "qwen3_moe-packed": ("qwen3_moe", CT),
    "qwen3_moe-packed-exact-dense": ("qwen3_moe", CT | {"ignore": ["re:1.mlp.(gate|up)_proj"]}),
    "qwen3_moe-gptq-layers": ("qwen3_moe", {"layers": [0, 2]}),
    "qwen3_moe-awq-exact-dense": (
        "qwen3_moe",
        {"method": "awq", "ignore": ["re:1.mlp.(gate|up)_proj"]} | ASYMMETRIC,
    ),
}
EXACT_EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral-gptq": ("mixtral", {"ignore": ["re:experts"]}),
    "qwen3_moe-packed": ("qwen3_moe", CT | {"ignore": ["re:experts"]}),
    "qwen3_moe-awq": ("qwen3_moe", {"method": "awq", "ignore": ["re:experts"]} | ASYMMETRIC),
}


Logprobs = dict[str, tuple[np.ndarray, np.ndarray]]
"""Of every case, by vLLM and as a reference; ``[positions, vocabulary]`` each."""

Serve = Callable[[dict[str, tuple[str, dict[str, Any]]], str], Logprobs]


@pytest.fixture(scope="module")
def serve(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., Path],
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
) -> Serve:
    """Quantizes mixtures and asks vLLM what it predicts."""

    def run(cases: dict[str, tuple[str, dict[str, Any]]], preparation: str) -> Logprobs:
        root = tmp_path_factory.mktemp("experts")
        folders = [root / name / "quantized" for name in cases]
        for folder, (model_type, quantization) in zip(folders, cases.values(), strict=True):
            config = SIZES | (MIXTRAL if model_type == "mixtral" else QWEN)
            source = make_model(
                folder.with_name("source"), model_type, stacked_experts=True, **config
            )
            store = LocalStore(folder.with_name("store"))
            made = run_steps(store, small_recipe(num_ranges=2, quantization=quantization), source)
            made.export(folder)
        served = served_logprobs(folders, root, preparation)
        references = map(reference_logprobs, folders)
        return dict(zip(cases, zip(served, references, strict=True), strict=True))

    return run


@pytest.fixture(scope="module")
def stacked(serve: Serve) -> Logprobs:
    return serve(CASES, PREPARATION)


@pytest.fixture(scope="module")
def exact(serve: Serve) -> Logprobs:
    return serve(EXACT_EXPERTS, "")


@pytest.mark.parametrize("case", CASES)
def test_vllm_stacks_the_experts_that_were_meant(case: str, stacked: Logprobs) -> None:
    assert_served_as_meant(*stacked[case])


@pytest.mark.parametrize("case", EXACT_EXPERTS)
def test_vllm_serves_exact_experts_on_a_cpu(case: str, exact: Logprobs) -> None:
    assert_served_as_meant(*exact[case])
