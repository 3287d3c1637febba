"""The folder that is written: what is replaced, and what is left when something breaks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantlib.checks.recipe import parse_recipe
from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.manager import QuantizationManager, QuantizationResult
from quantlib.output import WORK_NAME, output_problems, write_checkpoint, writing
from quantlib.store import LocalStore

Write = Callable[[Path], None]


@pytest.fixture(scope="module")
def made(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[QuantizationManager, QuantizationResult]:
    recipe = parse_recipe(
        {
            "quantization": {"method": "minmax", "weights": {"group_size": 32}},
            "num_ranges": 2,
            "validation": {"num_samples": 4, "sequence_length": 64},
        }
    )
    store = LocalStore(tmp_path_factory.mktemp("made") / "store")
    manager = QuantizationManager(recipe, str(tiny_llama), store, "cpu")
    return manager, manager.quantize()


@pytest.fixture
def write(made: tuple[QuantizationManager, QuantizationResult]) -> Write:
    manager, result = made
    return lambda output: manager.save(result, output)


def problems(output: Path, *, overwrite: bool = True) -> str:
    return "\n".join(map(str, output_problems(output, overwrite=overwrite)))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_checkpoint_of_ours_is_replaced(write: Write, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output)
    names = set(content(output))
    assert "model.safetensors.index.json" in names
    assert problems(output, overwrite=False).endswith("choose another, or give --overwrite")
    assert problems(output) == ""
    # One that had more files: none of them stays, or vLLM would load it too.
    report = json.loads((output / "quantization_report.json").read_text())
    shutil.copy(output / "model-00001-of-00003.safetensors", output / "model-00009.safetensors")
    files = report["sizes"]["files"]
    files["model-00009.safetensors"] = files["model-00001-of-00003.safetensors"]
    (output / "quantization_report.json").write_text(json.dumps(report))
    write(output)
    assert set(content(output)) == names
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["thesis.txt", "sub/thesis.txt", "sub/", ".hidden", "link"])
def test_what_others_wrote_is_never_removed(write: Write, tmp_path: Path, name: str) -> None:
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(output)
    stranger = output / name
    if name == "link":
        stranger.symlink_to(elsewhere)
    elif name.endswith("/"):
        stranger.mkdir()
    else:
        stranger.parent.mkdir(exist_ok=True)
        stranger.write_text("not yours")
    assert f"did not write, or what was changed since: {name.rstrip('/')}; move" in problems(output)
    with pytest.raises(QuantlibError, match="did not write"):
        write(output)
    assert stranger.exists()
    assert (output / "config.json").exists()


def test_what_was_changed_since_is_not_removed(write: Write, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output)
    (output / "generation_config.json").write_text("{}")
    (output / "tokenizer.json").write_text((output / "tokenizer.json").read_text() + " ")
    assert "changed since: generation_config.json, tokenizer.json;" in problems(output)


def test_without_a_report_nothing_is_replaced(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "quantization_report.json").write_text(json.dumps({"schema": "somebody/1"}))
    assert "has no quantization_report.json that says that quantlib wrote it" in problems(output)
    report = {"schema": "quantlib/report/1", "sizes": {"files": {"../thesis.txt": {"bytes": 3}}}}
    (output / "quantization_report.json").write_text(json.dumps(report))
    (tmp_path / "thesis.txt").write_text("abc")
    assert problems(output) == ""  # a report alone; but only what is in the folder can go


def test_a_report_that_names_files_elsewhere_removes_none(write: Write, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output)
    (tmp_path / "thesis.txt").write_text("abc")
    report = json.loads((output / "quantization_report.json").read_text())
    report["sizes"]["files"]["../thesis.txt"] = {"bytes": 3}
    (output / "quantization_report.json").write_text(json.dumps(report))
    write(output)
    assert (tmp_path / "thesis.txt").read_text() == "abc"


@pytest.mark.parametrize("fails_at", range(1, 30))
def test_an_interruption_at_any_point_leaves_all_old_or_a_folder_that_can_be_written_again(
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails_at: int,
) -> None:
    output = tmp_path / "out"
    write(output)
    before = content(output)
    calls = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= fails_at:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("quantlib.output.os.replace", counted(os.replace))
        patch.setattr("quantlib.output.shutil.copyfile", counted(shutil.copyfile))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        try:
            write(output)
        except KeyboardInterrupt:
            if (output / "config.json").exists():
                assert content(output) == before
            assert problems(output) == ""
    write(output)
    assert content(output) == before
    assert {path.name for path in output.iterdir()} == set(before)


def test_an_interrupted_first_write_needs_no_overwrite(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    replaced = os.replace

    def fail(source: Path, target: Path) -> None:
        if target == output / "config.json":
            raise OSError(28, "No space left on device", str(target))
        replaced(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("quantlib.output.os.replace", fail)
        with pytest.raises(OSError, match="No space"):
            write(output)
    assert not (output / "config.json").exists()
    assert (output / "quantization_report.json").exists()
    assert problems(output, overwrite=False) == ""
    write(output)
    assert problems(output, overwrite=False) != ""


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    with writing(output) as work:
        (work / "store").mkdir()
        with pytest.raises(InvalidInputError, match="another run is writing it"), writing(output):
            pass
        assert (work / "store").is_dir()
    assert os.listdir(tmp_path) == []  # nothing was written, so nothing is left


@pytest.mark.parametrize("error", [InvalidInputError([]), RuntimeError()])
def test_what_is_kept_after_an_error(tmp_path: Path, error: Exception) -> None:
    output = tmp_path / "new" / "out"
    with pytest.raises(type(error)), writing(output) as work:
        (work / "store" / "steps").mkdir(parents=True)
        raise error
    assert output.exists() == isinstance(error, RuntimeError)
    assert (tmp_path / "new").exists() == isinstance(error, RuntimeError)


def test_odd_outputs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "is there and is no folder" in problems(tmp_path / "file")
    assert f"is a symbolic link to {tmp_path / 'nowhere'}" in problems(tmp_path / "link")
    assert "file is no folder" in problems(tmp_path / "file" / "out")
    assert "cannot be read: File name too long" in problems(tmp_path / ("x" * 300))
    assert "has no" in problems(_with_work_of_another(tmp_path))


def _with_work_of_another(folder: Path) -> Path:
    output = folder / "mine"
    (output / WORK_NAME / "store").mkdir(parents=True)
    assert problems(output) == ""  # the remains of a run that was killed
    (output / "thesis.txt").write_text("")
    return output


def test_a_full_volume_leaves_the_old_checkpoint(
    made: tuple[QuantizationManager, QuantizationResult],
    tmp_path: Path,
    mount: Callable[..., Path],
) -> None:
    manager, result = made
    manager.save(result, tmp_path / "out")
    size = sum(len(data) for data in content(tmp_path / "out").values())
    volume = mount(tmp_path / "vol", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "tmpfs")
    write_checkpoint(manager.store, result.checkpoint, result.report, volume)
    before = content(volume)
    with pytest.raises((OSError, QuantlibError), match="No space left on device"):
        write_checkpoint(manager.store, result.checkpoint, result.report, volume)
    assert content(volume) == before
    assert problems(volume) == ""
