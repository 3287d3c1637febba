"""``quantlib sign`` and ``quantlib verify`` as people call them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantlib import cli
from quantlib.report.text import FIGURES
from quantlib.steps.publish import publish


def _report_runs() -> Any:
    path = Path(__file__).parents[1] / "report" / "conftest.py"
    spec = importlib.util.spec_from_file_location("report_runs", path)
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def published(tmp_path: Path) -> Path:
    weights = {"model.safetensors": b"weights" * 1000, "vllm_config.json": b"{}"}
    run = _report_runs().commit_run(tmp_path, weights=weights)
    _, address = publish(run.store, run.recipe, "", run.checkpoint, run.validation)
    (tmp_path / "recipe.json").write_text(run.recipe.canonical_json())
    return Path(address)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made as the help text says."""
    for name in ("QUANTLIB_SIGNING_KEY", "QUANTLIB_SIGNING_PASSWORD", "QUANTLIB_PUBLIC_KEY"):
        monkeypatch.delenv(name, raising=False)
    key = tmp_path / "release.pem"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)]
    subprocess.run(make, check=True, capture_output=True)
    show = ["openssl", "ec", "-in", str(key), "-pubout", "-out", str(key.with_suffix(".pub"))]
    subprocess.run(show, check=True, capture_output=True)
    return key


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quantlib", *map(str, arguments)])
        patch.setattr("signal.signal", lambda *_: None)
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    output = capsys.readouterr()
    return code, output.out, output.err


def test_the_model_names_the_checkpoint_where_the_recipe_does_not(
    published: Path, key: Path, capsys: Any, tmp_path: Path
) -> None:
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    recipe["publish"]["name"] = None
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    made_by = ["--store", tmp_path / "store", "--recipe", tmp_path / "recipe.json", "--key", key]
    name = published.parent.name
    code, _, err = run(capsys, "sign", published, *made_by, "--model", tmp_path / "other")
    assert code == 2
    assert f"is called {name}, and by the recipe it is other; name it in the recipe" in err
    assert run(capsys, "sign", published, *made_by, "--model", tmp_path / name)[0] == 0


def test_what_was_verified_is_shown(
    published: Path, key: Path, capsys: Any, tmp_path: Path
) -> None:
    made_by = ["--store", tmp_path / "store", "--recipe", tmp_path / "recipe.json"]
    assert run(capsys, "sign", published, *made_by, "--key", key)[:2] == (0, "signed\n")
    assert run(capsys, "sign", published, *made_by, "--key", key)[:2] == (0, "is signed already\n")
    # A group size that was left open is the one that was settled then.
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    recipe["quantization"]["weights"]["group_size"] = "auto"
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert run(capsys, "sign", published, *made_by, "--key", key)[:2] == (0, "is signed already\n")
    public = key.with_suffix(".pub")
    code, out, err = run(capsys, "verify", f"{published}/", "--public-key", public)
    assert code == 0
    shown = " ".join(out.split())
    for part in (
        f"checkpoint sha256:{published.name}",
        "model Tiny-Llama-6, hf://example-org/Tiny-Llama-6@c0ffee",
        "gate passed: all 3 checks",
        "release 2, published 20",
        "perplexity 16.77, original 15.38",
        "KL divergence 0.108 ± 0.0031",
        "judged by vllm 0.32.0",
        "signature by key ",
    ):
        assert part in shown
    assert "Verifying" in err
    assert "signature not checked" in " ".join(run(capsys, "verify", published)[1].split())


def test_faults_are_printed_and_exit_with_1(published: Path, capsys: Any) -> None:
    (published / "model.safetensors").write_bytes(b"other")
    (published / "tokenizer.json").unlink()
    code, out, err = run(capsys, "verify", published)
    assert (code, out) == (1, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: {published}/model.safetensors: holds 5 bytes, not 7000",
        f"error: {published}/tokenizer.json: there is no such file",
    ]


def test_options_that_make_no_sense_exit_with_2(published: Path, key: Path, capsys: Any) -> None:
    for arguments, what in (
        (["verify", published, "--require-signature"], "nothing to check one with"),
        (["verify", published, "--identity", "me"], "--identity and --issuer: belong together"),
        (["verify", published, "--public-key", key.with_name("none")], "cannot be read"),
        (
            ["sign", published, "--store", "s", "--recipe", "r"],
            "signer: is missing; give --key or --keyless",
        ),
        (["verify", published, "--digest", "sha256:12"], "--digest: sha256:12 is no digest"),
    ):
        code, _, err = run(capsys, *arguments)
        assert (code, what in err) == (2, True), err


def test_json(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "verify", published, "--json", "--quiet")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["schema"] == "quantlib/verify/1"
    assert (found["verified"], found["problems"]) == (True, [])
    assert found["checkpoint"] == f"sha256:{published.name}"
    assert (found["verdict"], found["signed"], found["signer"]) == ("passed", False, None)
    assert set(found["figures"]) == set(FIGURES)

    (published / "model.safetensors").write_bytes(b"other")
    code, out, err = run(capsys, "verify", published, "--json", "--quiet")
    assert code == 1
    found = json.loads(out)
    assert found["verified"] is False
    assert err == "".join(f"error: {problem}\n" for problem in found["problems"])
