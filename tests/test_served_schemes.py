"""Every scheme that a recipe may ask for: vLLM for CPUs serves it as meant, or our worker does.

What vLLM loads has no method any more: each form of checkpoint is loaded once, by methods in turn.
With ``QUANTLIB_EVERY_METHOD=1`` every method is, three times as many.

Those that vLLM cannot are listed in docs/formats.md with the reason, which `make quality` compares
with the code. They are loaded by vLLM too, and emulated: in one size of groups, and in float32, for
what is rounded to four bits differs by a tenth where bfloat16 has rounded it first.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import ROOT
from serving import assert_served_as_meant, reference_logprobs, served_logprobs

from quantlib.checks.scheme import resolve_format, schemes
from quantlib.formats import format_registry
from quantlib.quantization import QuantizationSection
from quantlib.store import LocalStore

SECTIONS = list(schemes())
# Groups of 128 have to divide every linear's input.
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}


def name_of(section: QuantizationSection) -> str:
    weights = section.weights
    parts = [section.method, resolve_format(section), f"{weights.type}{weights.bits}"]
    parts += [weights.scale, f"b{weights.block_rows}"] if weights.type == "float" else []
    parts += [f"g{weights.group_size}", "sym" if weights.symmetric else "asym", section.activations]
    return "-".join(parts)


def cpu_problem(section: QuantizationSection) -> str | None:
    checkpoint_format = format_registry.get_format(resolve_format(section))
    return checkpoint_format.cpu_problem(section.weights, section.activations)


def in_turn(sections: list[QuantizationSection]) -> Iterator[QuantizationSection]:
    """Of the sections of each form, one, so that every method meets every format."""
    forms: dict[Any, list[QuantizationSection]] = {}
    for section in sections:
        form = (resolve_format(section), section.weights, section.activations)
        forms.setdefault(form, []).append(section)
    turns: Counter[tuple[str, str]] = Counter()
    for (checkpoint_format, *_), found in forms.items():
        least = min(found, key=lambda section: turns[checkpoint_format, section.method])
        turns[checkpoint_format, least.method] += 1
        yield least


EVERY_METHOD = bool(os.environ.get("QUANTLIB_EVERY_METHOD"))
ON_CPU = [section for section in SECTIONS if cpu_problem(section) is None]
SERVED = {name_of(section): section for section in (ON_CPU if EVERY_METHOD else in_turn(ON_CPU))}


@pytest.fixture(scope="module")
def logprobs(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., Path],
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Of every scheme, by vLLM and as a reference."""
    root = tmp_path_factory.mktemp("schemes")
    source = make_model(root / "source", "llama", **SIZES)
    store = LocalStore(root / "store")
    folders = []
    for name, section in SERVED.items():
        made = run_steps(store, small_recipe(quantization=section.model_dump()), source)
        made.export(root / name)
        folders.append(root / name)
    served = served_logprobs(folders, root)
    yield {
        name: (found, reference_logprobs(root / name))
        for name, found in zip(SERVED, served, strict=True)
    }


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
@pytest.mark.parametrize("name", SERVED)
def test_vllm_computes_what_the_quantizer_meant(
    name: str, logprobs: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    assert_served_as_meant(*logprobs[name])


def test_every_method_and_format_is_among_them() -> None:
    assert {section.method for section in SECTIONS} >= {"awq", "gptq", "hqq", "minmax"}
    formats = {format_registry.get_format(name).name for name in format_registry}
    assert {resolve_format(section) for section in SECTIONS} == formats
    assert len({name_of(section) for section in SECTIONS}) == len(SECTIONS)
    met = {(section.method, resolve_format(section)) for section in SERVED.values()}
    assert met == {(section.method, resolve_format(section)) for section in ON_CPU}


def test_what_no_cpu_serves_is_documented() -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    reasons = {problem for section in SECTIONS if (problem := cpu_problem(section))}
    assert reasons
    for reason in reasons:
        assert reason in page
