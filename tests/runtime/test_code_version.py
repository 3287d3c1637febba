"""Which code a step is of: quantlib's own and that of its extensions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantlib.errors import InvalidInputError
from quantlib.runtime import code_version as code
from quantlib.runtime.code_version import (
    code_digest,
    code_version,
    code_versions,
    require_same_code,
)


def test_steps_run_in_the_code_that_the_pipeline_was_compiled_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("QUANTLIB_CODE", raising=False)
    require_same_code()
    monkeypatch.setenv("QUANTLIB_CODE", code_version())
    require_same_code()
    monkeypatch.setenv("QUANTLIB_CODE", "0.0.9+000000000000")
    with pytest.raises(InvalidInputError, match=r"was compiled from quantlib 0\.0\.9"):
        require_same_code()


def test_quantlib_is_named_with_its_whole_digest() -> None:
    assert code_versions()["quantlib"].endswith(f"+{code_digest()}")


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a quantizer."""
    package = tmp_path / "my_parts"
    package.mkdir()
    (package / "__init__.py").write_text("class Mse: shrink = 0.6\n")
    metadata = tmp_path / "my_parts-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-parts\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[quantlib.quantizers]\nmse = my_parts:Mse\n")
    (metadata / "top_level.txt").write_text("my_parts\n")
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield package
    monkeypatch.undo()
    sys.modules.pop("my_parts", None)
    forget()


def forget() -> None:
    code._packages_with_parts.cache_clear()
    code._extension_version.cache_clear()


def test_the_code_of_an_extension_counts(extension: Path) -> None:
    before = code_versions()["my_parts"]
    assert before.startswith("1.0+")
    (extension / "__init__.py").write_text("class Mse: shrink = 0.3\n")
    forget()
    after = code_versions()["my_parts"]
    assert after.startswith("1.0+")
    assert after != before


def test_without_extensions_there_are_none(
    extension: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(extension.parent)])
    forget()
    assert "my_parts" not in code_versions()


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
