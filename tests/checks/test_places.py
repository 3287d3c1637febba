"""Folders by all the names that they can have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quantlib.checks.places import Place, conflicts, holds, model_places, standing_places

Mount = Callable[..., Path]


def test_names_of_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "work" / "model"
    model.mkdir(parents=True)
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "up").symlink_to(tmp_path / "work")
    monkeypatch.chdir(model)
    assert holds(model, model)
    assert holds(Path("."), model)
    assert holds(tmp_path / "link", model)
    assert holds(model, tmp_path / "link")
    assert holds(tmp_path / "work" / ".." / "work", tmp_path / "link")
    assert holds(tmp_path / "up", model)
    assert holds(model, tmp_path / "up" / "model" / "new" / "out")  # not there yet
    assert holds(tmp_path, tmp_path / "link")
    assert not holds(model, tmp_path / "work")
    assert not holds(tmp_path / "work" / "mode", model)
    assert not holds(tmp_path / "new", model)
    assert holds(tmp_path / "new", tmp_path / "new" / "inner")  # neither is there


def test_bind_mounts_are_seen_through(tmp_path: Path, mount: Mount) -> None:
    model = tmp_path / "project" / "model"
    model.mkdir(parents=True)
    alone = mount(tmp_path / "mounted model", "--bind", model)
    assert holds(alone, model)
    assert holds(model, alone / "out")
    assert holds(tmp_path / "project", alone)
    assert not holds(alone, tmp_path / "project")
    project = mount(tmp_path / "same", "--bind", tmp_path / "project")
    assert holds(project, model)
    assert holds(project, alone)
    assert holds(project / "model", tmp_path / "project" / "model" / "new")


def test_all_conflicts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    model = home / "project" / "model"
    model.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "project")
    places = [*standing_places(), *model_places(model), Place("the text", tmp_path / "text.txt")]

    def found(folder: Path) -> list[str]:
        return [problem.what.partition(" (")[0] for problem in conflicts(folder, places)]

    root = ["holds the home folder", "holds the current folder", "holds the model"]
    assert found(Path("/")) == ["is the root of the file system", *root, "holds the text"]
    assert found(home) == ["is the home folder", *root[1:]]
    assert found(home / "project") == ["is the current folder", "holds the model"]
    assert found(model) == ["is the model"]
    assert found(model / "out") == ["lies in the model"]
    assert found(home / "project" / "out") == []


def test_files_that_are_linked_into_a_model_belong_to_it(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "abc").write_text("weights")
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blobs / "abc", snapshot))
    (problem,) = conflicts(blobs, model_places(snapshot))
    assert problem.what == f"holds a file of the model ({blobs / 'abc'})"
