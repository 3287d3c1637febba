"""Schemes that vLLM has no kernel for on a CPU: loaded by vLLM, computed by our emulation as meant.

In float32, where the emulation and transformers round the same inputs to the same values: what
bfloat16 rounds first is far from that where a code has four bits. A mixture has its attention, its
experts and the MLP of a block without experts in one scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import assert_served_as_meant, reference_logprobs, served_or_refused

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.model import cpu_problem, is_emulated
from quantlib.evaluation.choose_engine import installed_vllm
from quantlib.formats.stored.weights import StoredWeight
from quantlib.models import open_model
from quantlib.schemes import SCHEMES
from quantlib.store import LocalStore

_INSTALLED = installed_vllm()

PREPARATION = """
from quantlib.evaluation import emulated_experts, emulated_linears
emulated_linears.put_in_place()
emulated_experts.put_in_place()
"""
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "initializer_range": 0.1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
}
# With every expert chosen for every token, no token goes elsewhere because scores were rounded.
MIXTURE = {
    "num_hidden_layers": 2,
    "num_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "mlp_only_layers": [1],
}
OF_EXPERTS = [name for name in SCHEMES if name not in ("FP8_STATIC", "W4A8")]
"""Those that vLLM serves experts in."""


def outside(head: str, embeddings: str | None = None) -> tuple[str, dict[str, Any]]:
    """A case with a head, and embeddings, in schemes of their own."""
    rules = []
    for kind, name in {"lm_head": head, "embeddings": embeddings}.items():
        if name is not None:
            fixed = "group_size" in SCHEMES[name]["weights"]
            rules.append(
                {"scheme": name, "linears": [kind]} | ({} if fixed else {"group_size": 64})
            )
    return "llama", {**SCHEMES["MXFP8"], "schemes": rules}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("qwen3_moe", dict(SCHEMES[name])) for name in OF_EXPERTS},
    "FP8_STATIC": ("llama", dict(SCHEMES["FP8_STATIC"])),
    "W8A16_ASYM": ("llama", {"weights": {"bits": 8, "symmetric": False, "group_size": 64}}),
    "W8A16-gptq": ("llama", {"weights": {"bits": 8, "group_size": 32}, "format": "gptq"}),
    "FP8 head": outside("FP8", "W8A16"),
    "W8A16 head": outside("W8A16", "W4A16"),
    "NVFP4 head": outside("NVFP4", "W2A16"),
    "MXFP4 head": outside("MXFP4"),
}

IN_16_BITS = ("W4A16", "W8A16-gptq")
"""Of which vLLM computes something by kernels, in 16 bits alone."""

ALLOWED = {
    **dict.fromkeys(("W4A16", "W4A16_ASYM", "W8A16-gptq"), 0.01),
    # Experts share a step, as they do in vLLM: 0.003 was seen.
    "FP8": 0.01,
}
"""Divergence; of all others 0.001."""

Logprobs = dict[str, tuple[np.ndarray | str, np.ndarray]]


@pytest.fixture(scope="module")
def logprobs(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., Path],
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
) -> Iterator[Logprobs]:
    """Of every case, by vLLM, or why not, and as a reference; ``[positions, vocabulary]`` each."""
    root = tmp_path_factory.mktemp("emulated")
    sources = {
        kind: make_model(root / kind, kind, dtype="float32", **SIZES | config)
        for kind, config in {"llama": {}, "qwen3_moe": MIXTURE}.items()
    }
    store, folders = LocalStore(root / "store"), []
    for name, (kind, scheme) in CASES.items():
        weights = {"group_size": 32} | scheme["weights"]
        asked = {"method": "minmax", "format": "compressed-tensors"} | scheme | {"weights": weights}
        recipe = small_recipe(quantization=asked)
        _, adapter = open_model(FolderSource(sources[kind]))
        assert cpu_problem(recipe.quantization, adapter)
        assert is_emulated(recipe.quantization, adapter)
        made = run_steps(store, recipe, sources[kind])
        made.export(root / "made" / name)
        folders.append(root / "made" / name)
    float32 = [folder for folder in folders if not folder.name.startswith(IN_16_BITS)]
    served = served_or_refused(folders, root, PREPARATION, float32)
    with pytest.MonkeyPatch.context() as patch:
        # compressed-tensors' decompression rounds FP4 to bfloat16 first, and vLLM does not.
        patch.setattr(
            StoredWeight, "finished", lambda own, codes, _: codes.dequantize(own.torch_dtype)
        )
        yield {
            folder.name: (found, reference_logprobs(folder))
            for folder, found in zip(folders, served, strict=True)
        }


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(_INSTALLED is None or not _INSTALLED.on_cpu, reason="no vLLM for CPUs")
@pytest.mark.parametrize("name", CASES)
def test_what_has_no_kernel_is_computed_as_meant(name: str, logprobs: Logprobs) -> None:
    served, reference = logprobs[name]
    assert isinstance(served, np.ndarray), served[-3000:]
    assert_served_as_meant(served, reference, ALLOWED.get(name, 0.001))
