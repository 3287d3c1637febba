"""``quantlib compare`` on checkpoints that the command line wrote."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from quantlib.cli import cli
from quantlib.errors import InvalidInputError


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """W8A8 without and with SmoothQuant."""
    root = tmp_path_factory.mktemp("runs")
    options = ["--model", tiny_llama, "--method", "minmax", "--bits", 8, "--group-size", -1]
    options += ["--activations", "int8", "--num-samples", 4, "--sequence-length", 64]
    recipe = root / "r.yaml"
    recipe.write_text("validation: {num_samples: 4, sequence_length: 64}\n")
    for name, further in (("plain", []), ("smooth", ["--outlier-suppression", "smooth_quant"])):
        command = ["quantize", *options, "--recipe", recipe, "--output", root / name]
        done = call(*command, "--store", root / "store", *further)
        assert done.exit_code == 0, done.output
    return [root / "plain", root / "smooth"]


def test_a_table_and_a_page(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = call("compare", *runs, "--output", page)
    assert done.exit_code == 0, done.output
    for expected in ("A plain", "B smooth", "after smooth_quant", "not validated", "--validate"):
        assert expected in done.output
    assert "not a fair comparison" not in done.output
    assert done.output.endswith(f"page: {page}\n")
    html = page.read_text()
    assert "outlier_suppression.method" in html
    assert page.stat().st_mode & 0o777 == 0o644


def test_json(runs: list[Path], tmp_path: Path) -> None:
    done = call("compare", *runs, "--json", "--output", tmp_path / "page.html")
    found = json.loads(done.stdout)
    assert found["schema"] == "quantlib/comparison/1"
    assert [run["method"]["outlier_suppression"] for run in found["runs"]] == [None, "smooth_quant"]
    assert found["runs"][0]["kl_mean"] is None
    assert len(found["runs"][0]["block_errors"]) == 4


def test_nothing_is_written_for_bad_input(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    (tmp_path / "not").mkdir()
    for arguments, message in (
        ([runs[0]], "1 given"),
        ([runs[0], tmp_path / "not"], "holds no quantization_report.json"),
        ([runs[0], tmp_path / "missing"], "there is no such file"),
    ):
        done = call("compare", *arguments, "--output", page)
        assert isinstance(done.exception, InvalidInputError)
        assert done.exception.exit_code == 2
        assert message in str(done.exception)
        assert not page.exists()


def test_an_output_that_cannot_be_written(runs: list[Path], tmp_path: Path) -> None:
    for output in (tmp_path / "none" / "page.html", tmp_path):
        done = call("compare", *runs, "--output", output)
        assert isinstance(done.exception, InvalidInputError)
        assert "cannot be written" in str(done.exception)
    shutil.rmtree(tmp_path)
