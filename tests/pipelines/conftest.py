"""A runner of toy workflows."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toys import Toy, run_toy

from pipelines.local.run import RunResult


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., RunResult]:
    """Runs a toy; ``run.output`` holds what was printed last."""

    def run_it(toy: Toy, **how: Any) -> RunResult:
        output = io.StringIO()
        result = run_toy(toy, tmp_path / "run", Console(file=output, width=200), **how)
        run_it.output = output.getvalue()  # type: ignore[attr-defined]  # a function with an attribute
        return result

    return run_it
