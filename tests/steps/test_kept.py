"""A step that walks over blocks, killed in the middle, loses no block that was finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantlib.blockwise import quantize_block as quantizing
from quantlib.models.walk import Walk
from quantlib.recipe import Recipe
from quantlib.steps.calibrate import calibrate
from quantlib.steps.fetch import fetch
from quantlib.steps.plan import plan
from quantlib.steps.quantize import quantize
from quantlib.steps.smooth import smooth
from quantlib.steps.texts import bring_texts
from quantlib.store import LocalStore, Receipt, Store, open_store, run_facts


@pytest.fixture(autouse=True)
def every_block_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short its work is here."""
    monkeypatch.setattr("quantlib.steps.kept._MOST_TIMES_LONGER", 0)


@pytest.fixture(params=["folder", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return LocalStore(tmp_path / "store")
    return open_store(str(request.getfixturevalue("s3_address")))


class Killed(BaseException):
    """As if the process had ended here."""


def die_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> list[int]:
    """Lets a function raise at its n-th call, and counts the calls."""
    function, calls = getattr(owner, name), [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise Killed
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


def walked_to(store: Store, recipe: Recipe, folder: Path, last: str) -> Receipt:
    model = fetch(store, str(folder))
    planned = plan(store, recipe, model, bring_texts(store, recipe), 1)
    calibration = calibrate(store, recipe, model, planned, "cpu")
    if last == "calibrate":
        return calibration
    smoothing = smooth(store, recipe, model, calibration)
    return quantize(store, recipe, "0:4", model, calibration, smoothing, "cpu")


def whole(receipt: Receipt) -> dict[str, str]:
    return {name: record.sha256 for name, record in receipt.files.items()}


@pytest.mark.parametrize("killed_at", [1, 2, 4])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantization": {"method": "minmax"}},
        {"outlier_suppression": {"method": "smooth_quant"}},
    ],
    ids=["gptq", "minmax", "smoothed"],
)
def test_a_range_goes_on_with_the_block_that_it_was_at(
    any_store: Store,
    tiny_llama: Path,
    small_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: int,
    changes: dict[str, Any],
) -> None:
    recipe = small_recipe(**changes)
    undisturbed = walked_to(LocalStore(tmp_path / "other"), recipe, tiny_llama, "quantize")
    with monkeypatch.context() as patch:
        calls = die_at(patch, quantizing, "quantize_block", killed_at)
        with pytest.raises(Killed):
            walked_to(any_store, recipe, tiny_llama, "quantize")
        assert calls == [killed_at]
    calls = die_at(monkeypatch, quantizing, "quantize_block", 0)
    receipt = walked_to(any_store, recipe, tiny_llama, "quantize")
    assert calls == [4 - (killed_at - 1)]
    assert whole(receipt) == whole(undisturbed)
    assert receipt.key == undisturbed.key
    assert list(any_store.list("partial")) == []
    remarks = run_facts(any_store, receipt).get("remarks", [])
    kept = f"{killed_at - 1} of 4 blocks were kept by an earlier run."
    assert remarks == ([kept] if killed_at > 1 else [])


@pytest.mark.parametrize("spoil", ["note", "hidden", "block"])
def test_what_is_damaged_is_not_gone_on_with(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: str,
) -> None:
    undisturbed = walked_to(LocalStore(tmp_path / "x"), small_recipe(), tiny_llama, "quantize")
    with monkeypatch.context() as patch:
        die_at(patch, quantizing, "quantize_block", 3)
        with pytest.raises(Killed):
            walked_to(store, small_recipe(), tiny_llama, "quantize")
    (file,) = [f for f in store.list("partial") if f.path.split("/")[-1].startswith(spoil)][:1]
    store.put_bytes(bytes(store.read(file.path))[:-1] + b"\x01", file.path)
    calls = die_at(monkeypatch, quantizing, "quantize_block", 0)
    assert whole(walked_to(store, small_recipe(), tiny_llama, "quantize")) == whole(undisturbed)
    assert calls == [4]


def test_calibration_goes_on_with_the_block_that_it_was_at(
    any_store: Store,
    tiny_llama: Path,
    small_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = small_recipe(outlier_suppression={"method": "smooth_quant"})
    other = LocalStore(tmp_path / "other")
    undisturbed = walked_to(other, recipe, tiny_llama, "calibrate")
    with monkeypatch.context() as patch:
        die_at(patch, Walk, "enter", 3)
        with pytest.raises(Killed):
            walked_to(any_store, recipe, tiny_llama, "calibrate")
    calls = die_at(monkeypatch, Walk, "enter", 0)
    assert whole(walked_to(any_store, recipe, tiny_llama, "calibrate")) == whole(undisturbed)
    assert calls == [2]


def test_over_a_slow_line_several_blocks_lie_between(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantlib.steps.kept import Kept
    from quantlib.store import StepOutput
    from quantlib.store.partial import Partial

    monkeypatch.setattr("quantlib.steps.kept._MOST_TIMES_LONGER", 20)
    now = [0.0]
    monkeypatch.setattr("quantlib.steps.kept.time.monotonic", lambda: now[0])
    partial = Partial(store, "quantize", "0" * 64)
    kept = Kept(StepOutput(store, store.scratch, partial, "runs/quantize/0"))
    assert kept.due
    write = partial.write

    def slow(*arguments: Any) -> None:
        write(*arguments)
        now[0] += 3

    monkeypatch.setattr(partial, "write", slow)
    kept.save([], {})
    now[0] += 59
    assert not kept.due
    now[0] += 1
    assert kept.due
