"""vLLM serves the quantized models of the zoo as transformers computes them.

Every family that vLLM computes on a CPU, with text alone. Experts have no kernels for codes there:
see tests/test_experts_served_by_vllm.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import zoo
from serving import assert_served_as_meant, reference_logprobs, served_or_refused
from test_experts_served_by_vllm import PREPARATION

from quantlib.store import LocalStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform"),
]

REFUSED = {
    "deepseek_v32": "Sparse Attention is not supported on CPU",
    "glm_moe_dsa": "Sparse Attention is not supported on CPU",
    "nemotron_h": "is_act_and_mul=False is supported only for",
    "hunyuan_v1_moe": "must match the size of tensor b",
    "kimi_linear": "Error",
}
"""What vLLM says of the families that it does not compute on a CPU."""

ROUTED = 0.2
"""The divergence allowed where there are experts: rounding sends tokens to others, by machine."""

CORRECTED = """
from quantlib.evaluation.vllm_cpu_worker import correct_kernels
correct_kernels()
"""

Outcome = tuple[np.ndarray | str, np.ndarray]


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
) -> dict[str, Outcome]:
    """Of every family what vLLM predicts and what transformers does."""
    root = tmp_path_factory.mktemp("served")
    recipe = small_recipe(num_ranges=3, quantization={"format": "compressed-tensors"})
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("QUANTLIB_DRY_LOAD", "never")
        for family in zoo.FAMILIES:
            store = LocalStore(root / family / "store")
            made = run_steps(store, recipe, zoo.make(family, root / family / "source"))
            made.export(root / family / "quantized")
            shutil.rmtree(store.root)
    folders = [root / family / "quantized" for family in zoo.FAMILIES]
    served = served_or_refused(folders, root, CORRECTED + PREPARATION)
    references = map(reference_logprobs, folders)
    return dict(zip(zoo.FAMILIES, zip(served, references, strict=True), strict=True))


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_family_is_served_as_meant(family: str, outcomes: dict[str, Outcome]) -> None:
    served, reference = outcomes[family]
    if family in REFUSED:
        assert isinstance(served, str) and REFUSED[family] in served
        return
    assert isinstance(served, np.ndarray), served[-2000:]
    mixture = any("expert" in field for field in text_config(family))
    assert_served_as_meant(served, reference, ROUTED if mixture else 0.01)


def text_config(family: str) -> dict[str, Any]:
    """The config of a family's language model."""
    config: dict[str, Any] = zoo.FAMILIES[family]
    return config.get("text_config", config)
