import os
import subprocess
import sys

import pytest

from quantlib.code import code_version, require_same_code
from quantlib.errors import InvalidInputError


def test_other_code_than_the_pipelines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTLIB_CODE", raising=False)
    require_same_code()
    monkeypatch.setenv("QUANTLIB_CODE", code_version())
    require_same_code()
    monkeypatch.setenv("QUANTLIB_CODE", "0.0.9+000000000000")
    with pytest.raises(InvalidInputError, match=r"compiled from quantlib 0\.0\.9\+0+, but this"):
        require_same_code()


def test_the_first_step_refuses_before_it_reads_anything() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "quantlib.steps", "fetch", "--executor-input", "{}"],
        env=os.environ | {"QUANTLIB_CODE": "0.0.9+000000000000"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fetch: pipeline: was compiled from quantlib 0.0.9+")
    assert len(done.stderr.splitlines()) == 1
