"""The page of each step, from real receipts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantlib.recipe import Recipe
from quantlib.report.summary import step_summary
from quantlib.store import LocalStore, Receipt, StepOutput, commit_step, read_lineage


def short(digest: str) -> str:
    return f"{digest.removeprefix('sha256:')[:12]}…"


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
        "fetch": [
            "- **model type**: llama\n",
            f"- **digest**: {short(receipts['fetch'].facts['digest'])}\n",
        ],
        "calibrate": [
            f"- **digest of its tokens**: {short(text['digest'])}\n",
            "- **ranges start at blocks**: ",
        ],
        "smooth": ["- **alpha 0.8**: 4 blocks\n", "- **left alone**: 0 blocks\n"],
        "quantize": ["# quantize 2:4", "- **method**: gptq\n", "14 linears, mean relative error"],
        "merge": ["- **quantized blocks**: 4 of 4\n", "28 linears, mean relative error"],
    }
    for step, lines in expected.items():
        page = step_summary(store, receipts[step])
        assert all(line in page for line in lines), page
        assert f"- **receipt**: {short(receipts[step].digest())}\n" in page
        assert f"/{receipts[step].key[:12]}….json\n" in page
        assert not re.search("[0-9a-f]{64}", page)
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
    # The result comes first.
    assert page.splitlines()[2] == f"- **verdict**: {facts['verdict']}"
    assert f"checkpoint {short(run.checkpoint.digest())}" in page
    # The original's half took time as well.
    assert "- **made: reference**: in 20.0 s\n" in page


def test_a_step_that_was_found_says_so_and_when_it_was_made(store: LocalStore) -> None:
    def work(output: StepOutput) -> None:
        output.facts = {"alpha": [0.5]}

    page = step_summary(store, commit_step(store, "smooth", {}, {}, work))
    made = re.search(r"- \*\*made\*\*: in 0\.\d s on (\d{4}-\d\d-\d\d \d\d:\d\d) UTC\n", page)
    assert made
    page = step_summary(store, commit_step(store, "smooth", {}, {}, work))
    assert "- **made**: found in the store, made in 0." in page
    assert made[1] in page


def test_what_was_published_is_named_whole_once(store: LocalStore) -> None:
    address, digest = f"s3://bucket/llama/{'ab' * 32}", f"sha256:{'ab' * 32}"

    def work(output: StepOutput) -> None:
        output.facts = {"address": address, "checkpoint_digest": digest}

    page = step_summary(store, commit_step(store, "publish", {}, {}, work))
    assert f"```\nquantlib verify {address}\n```\n" in page
    assert "- **published at**: s3://bucket/llama/abababababab…\n" in page
    assert page.count("ab" * 32) == 1
