"""The page of each step, from real receipts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantlib.recipe import Recipe
from quantlib.report.summary import step_summary
from quantlib.store import LocalStore, Receipt, read_lineage


@pytest.fixture(scope="module")
def made(
    small_recipe: Callable[..., Recipe],
    run_steps: Callable[..., Any],
    tiny_llama: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[LocalStore, dict[str, Receipt]]:
    store = LocalStore(tmp_path_factory.mktemp("summary") / "store")
    recipe = small_recipe(outlier_suppression={}, num_ranges=2)
    checkpoint = run_steps(store, recipe, tiny_llama).checkpoint
    return store, {receipt.step: receipt for receipt in read_lineage(store, checkpoint)}


def test_pages_say_what_came_out(made: tuple[LocalStore, dict[str, Receipt]]) -> None:
    store, receipts = made
    text = receipts["calibrate"].facts["text"]
    expected = {
        "fetch": ["| model type | llama |", f"| digest | {receipts['fetch'].facts['digest']} |"],
        "calibrate": [f"| digest of its tokens | {text['digest']} |", "| ranges start at blocks |"],
        "smooth": ["| alpha 0.8 | 4 blocks |", "| left alone | 0 blocks |"],
        "quantize": ["# quantize 2:4", "| method | gptq |", "14 linears, mean relative error"],
        "merge": ["| quantized blocks | 4 of 4 |", "28 linears, mean relative error"],
    }
    for step, lines in expected.items():
        page = step_summary(store, receipts[step])
        assert all(line in page for line in lines), page
        assert f"| receipt | {receipts[step].digest()} |" in page
        assert f"| in the store | {store.full_address(receipts[step].address)} |" in page
        assert len(page.encode()) < 16 * 1024


def test_the_least_faithful_linears_come_first(
    made: tuple[LocalStore, dict[str, Receipt]],
) -> None:
    store, receipts = made
    page = step_summary(store, receipts["merge"])
    rows = page.partition("| block | linear |")[2].splitlines()[2:12]
    errors = [float(row.split("|")[3]) for row in rows]
    assert len(errors) == 10
    assert errors == sorted(errors, reverse=True)


def test_a_judged_checkpoint(run: Any) -> None:
    page = step_summary(run.store, run.validation)
    facts = run.validation.facts
    assert f"| verdict | {facts['verdict']} |" in page
    assert f"| made of checkpoint | {run.checkpoint.digest()} |" in page
