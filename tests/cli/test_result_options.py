"""``--json`` and ``--quiet``: one object on standard output, and nothing besides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import Command, Done

from quantlib.cli.result_options import print_json

SMALL = [
    "--group-size", "32", "--num-samples", "8", "--sequence-length", "64", "--device", "cpu",
]  # fmt: skip


def parsed(done: Done, kind: str) -> dict[str, Any]:
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert next(iter(found)) == "schema"
    assert found["schema"] == f"quantlib/{kind}/1"
    return found


def test_commands_print_one_object(quantlib: Command, tiny_llama: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "quantization: {weights: {group_size: 32}}\n"
        "calibration: {num_samples: 8, sequence_length: 64}\n"
        "validation: {num_samples: 4, sequence_length: 64}\n"
    )
    shown = ["--json", "--quiet"]
    output, store = tmp_path / "out", tmp_path / "store"
    command = ["quantize", "--model", tiny_llama, "--recipe", recipe, *SMALL, "--store", store]
    made = parsed(quantlib(*command, "--output", output, *shown), "quantize")
    assert (made["verdict"], made["figures"]) == ("not_validated", None)
    assert made["output"] == str(output)
    assert Path(made["report"]).is_file()
    assert made["bytes_quantized"] < made["bytes_original"]

    listed = parsed(quantlib("store", "ls", store, *shown), "store")
    assert {"fetch", "calibrate", "quantize", "merge"} <= {each["step"] for each in listed["steps"]}
    assert {each["state"] for each in listed["steps"]} == {"committed"}
    assert (listed["unfinished"], listed["in_flight"]) == ([], [])

    found = parsed(quantlib("inspect", tiny_llama, *shown), "inspect")
    assert found["blocks"] == 4
    planned = parsed(quantlib("plan", tiny_llama, "--recipe", recipe, *shown), "plan")
    assert planned["problems"] == []
    page = tmp_path / "page.html"
    compared = parsed(quantlib("compare", output, output, "--output", page, *shown), "comparison")
    assert compared["page"] == str(page)
    assert compared["runs"][0]["checkpoint_digest"] == made["checkpoint"]


def test_what_does_not_fit_is_in_the_object_and_an_error(
    quantlib: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "calibration: {num_samples: 8, sequence_length: 64}\n"
        "validation: {num_samples: 4, sequence_length: 64}\n"
    )
    options = ["--recipe", recipe, "--group-size", "32", "--scratch", "1Ki", "--json"]
    done = quantlib("plan", tiny_llama, *options)
    assert done.returncode == 2
    problems = json.loads(done.stdout)["problems"]
    assert problems
    assert done.stderr == "".join(f"error: {problem}\n" for problem in problems)


def test_numbers_that_are_not_finite_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json("test", {"figures": {"kl_mean": float("nan")}, "all": (1.5, float("inf"))})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"schema": "quantlib/test/1", "figures": {"kl_mean": None}, "all": [1.5, None]}
