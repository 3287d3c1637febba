"""A recipe with a budget through the workflow's own processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from recipes import QUICK

from quantlib.report.model import JSON_NAME, Report


@pytest.mark.slow
def test_a_budget_goes_through_the_workflow_in_three_ranges(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", "llama", num_hidden_layers=3, intermediate_size=128)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(QUICK | {"num_ranges": 3}))
    command = [sys.executable, "-m", "quantlib", "run", "--recipe", str(recipe)]
    command += ["--model", str(model), "--store", str(tmp_path / "store"), "--device", "cpu"]
    command += ["--publish-to", str(tmp_path / "published"), "--budget", "5.5bits", "--parallel"]
    done = subprocess.run([*command, "3"], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "published").glob("*/*")
    report = Report.from_json((folder / JSON_NAME).read_bytes())
    assert report.search is not None
    assert report.search.budget == "5.5 bits"
    assert report.search.chosen.bits <= 5.5
    assert report.recipe["quantization"]["schemes"]
    steps = [receipt.step for receipt in report.provenance.receipts]
    assert steps.count("measure") == 3
    assert steps.count("choose") == 1
