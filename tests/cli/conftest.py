"""The command line as a function."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Command, Done

from quantlib.cli import main


@pytest.fixture
def quantlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process, which saves its start."""

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["quantlib", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            signal.signal(signal.SIGTERM, handler)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("validation: {num_samples: 4, sequence_length: 64}\n")
    return path
