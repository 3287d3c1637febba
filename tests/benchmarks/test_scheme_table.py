"""Which cells the table of schemes has, and how they are shown."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.scheme_table import Cell, Measured, markdown
from benchmarks.scheme_tools import METHODS, can, group_size_of, job_of, recipe_of, rules_of
from quantlib.checks.recipe import parse_recipe
from quantlib.schemes import SCHEMES

CELL = Cell("smollm2", "NVFP4", "quantlib", "gptq", seed=1)
MEASURED = Measured(
    CELL,
    user_seconds=40.4,
    peak_mib=600,
    bits=4.5,
    perplexity=20.0,
    original_perplexity=19.0,
    kl=0.1,
    kl_error=0.01,
    top1=0.9,
)


def test_what_was_measured_is_read_back() -> None:
    assert Measured.from_json(json.loads(json.dumps(asdict(MEASURED)))) == MEASURED


def test_seeds_are_averaged_and_failures_left_out() -> None:
    other = replace(MEASURED, cell=replace(CELL, seed=2), kl=0.2, perplexity=21.0)
    peer = replace(MEASURED, cell=replace(CELL, tool="auto-round", method="tuning"), bits=None)
    failed = Measured(replace(CELL, scheme="MXFP4"), failure="it cannot")
    lines = markdown([peer, failed, other, MEASURED]).splitlines()
    assert lines[0] == "smollm2, perplexity 19.00:"
    assert lines[-2:] == [
        "| `NVFP4` | 4.50 | quantlib | GPTQ | 0.1500 | 20.50 | 0.900 | 40 | 600 |",
        "|  |  | auto-round | tuning | 0.1000 | 20.00 | 0.900 | 40 | 600 |",
    ]
    assert "MXFP4" not in "".join(lines)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_a_row_of_ours(scheme: str) -> None:
    four = SCHEMES[scheme]["weights"]["bits"] == 4
    assert can("quantlib", scheme, "minmax") and can("quantlib", scheme, "gptq")
    assert can("quantlib", scheme, "awq") == four
    assert not can("quantlib", scheme, "tuning")
    for method in METHODS:
        if can("quantlib", scheme, method):
            parse_recipe(recipe_of(scheme, method))


def test_tools_are_told_of_schemes_in_their_words() -> None:
    assert group_size_of("W4A16") == 64 and group_size_of("NVFP4") is None
    assert job_of("auto-round", "W4A16", "minmax") == {
        "group_size": 64,
        "scheme": "W4A16G64",
        "steps": 0,
    }
    assert not can("modelopt", "NVFP4", "minmax")
    assert job_of("modelopt", "W4A16", "awq")["scheme"] == "INT4_AWQ_CFG"
    assert not can("llm-compressor", "FP8_DYNAMIC", "awq")


def test_what_a_tool_chose_is_a_recipe_of_ours() -> None:
    up, down = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
    rules = rules_of({up: (4, 32), down: (8, 64), "model.layers.1.mlp.up_proj": (4, 32)})
    assert rules == [
        {"scheme": "W4A16", "group_size": 32, "linears": [up, "model.layers.1.mlp.up_proj"]},
        {"scheme": "W8A16", "group_size": 64, "linears": [down]},
    ]
    section = parse_recipe({"quantization": {"schemes": rules}}).quantization
    assert [rule.scheme for rule in section.schemes] == ["W4A16", "W8A16"]
