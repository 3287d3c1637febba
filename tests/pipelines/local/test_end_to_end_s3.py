"""The workflow with model, store and published checkpoint in a bucket of a real server."""

import gzip
import json
import os
from pathlib import Path

import pytest
import s3
from cli.conftest import quantlib as quantlib  # a fixture
from command import Command
from in_process import InProcess
from recipes import QUICK

from quantlib.report.manifest import verify_published
from quantlib.store import open_store

SHIPPED_TEXTS = Path(__file__).parents[3] / "quantlib/text/data"
LAUNCHER_BYTES = 16 * 1024
SECRET = s3.OWNER[1]


def arguments(folder: Path, address: str) -> list[str]:
    recipe = folder / "recipe.json"
    calibration = QUICK["calibration"] | {"dataset": f"{address}/texts/prompts.jsonl.gz"}
    recipe.write_text(json.dumps(QUICK | {"calibration": calibration}))
    given = ["run", "--recipe", str(recipe), "--parallel", "2", "--device", "cpu"]
    given += ["--model", f"{address}/models/tiny", "--store", f"{address}/store"]
    return [*given, "--publish-to", f"{address}/published", "--run-dir", str(folder / "run")]


@pytest.mark.slow
def test_everything_in_a_bucket(
    s3_address: str,
    proxy: s3.Proxy,
    tiny_llama: Path,
    tmp_path: Path,
    quantlib: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = open_store(f"{s3_address}/models/tiny")
    for path in tiny_llama.iterdir():
        models.import_file(path, path.name)
    text = gzip.compress((SHIPPED_TEXTS / "python-topics.jsonl").read_bytes())
    open_store(f"{s3_address}/texts").put_bytes(text, "prompts.jsonl.gz")
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.commands.run.ProcessRunner", InProcess)
        result = quantlib(*arguments(tmp_path, s3_address))
    assert result.returncode == 0, result.stdout + result.stderr
    outcome = json.loads((tmp_path / "run" / "run.json").read_text())
    published = open_store(outcome["tasks"]["publish"]["outputs"]["parameters"]["address"])
    verify_published(published)
    assert published.address.startswith(f"{s3_address}/published/tiny/")
    report = json.loads(bytes(published.read("quantization_report.json")))
    assert report["calibration"]["source"] == "prompts.jsonl.gz"
    assert list(report["calibration"]["read"]["used"]) == ["text"]

    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    for path in written:
        assert SECRET not in path.read_text(errors="replace"), path
        if "artifacts" in path.parts and not path.name.startswith("quantization_report"):
            assert path.stat().st_size < LAUNCHER_BYTES, path
    assert SECRET not in result.stdout + result.stderr

    proxy.requests.clear()
    again = quantlib(*arguments(tmp_path, s3_address))  # each step a process
    assert again.returncode == 0, again.stdout + again.stderr
    assert proxy.received("safetensors") < 100_000  # what is done is known without reading it


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("AWS_ACCESS_KEY_ID", "nobody", "does not know the access key"),
        ("AWS_SECRET_ACCESS_KEY", "wrong-secret", "check AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_credentials_are_checked_before_anything_is_done(
    s3_address: str,
    proxy: s3.Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    says: str,
    quantlib: Command,
) -> None:
    monkeypatch.setenv(variable, value)
    result = quantlib(*arguments(tmp_path, s3_address))
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"error: s3://{s3.BUCKET}: ")
    assert says in lines[0]
    assert "wrong-secret" not in result.stdout + result.stderr
    assert not (tmp_path / "run").exists()
    assert "AWS_SECRET_ACCESS_KEY" in os.environ
