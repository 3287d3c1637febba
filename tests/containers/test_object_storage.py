"""A pipeline whose model, store and published checkpoint are in a bucket, in containers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import s3
from containers.conftest import ROOT, docker
from recipes import QUICK

from quantlib.report.manifest import verify_published
from quantlib.store import open_store

RECIPE = QUICK | {"validation": QUICK["validation"] | {"engine": "vllm"}}


def test_everything_in_a_bucket(
    s3_address: str, proxy: s3.Proxy, tiny_llama: Path, tmp_path: Path
) -> None:
    models: Any = open_store(f"{s3_address}/models/tiny")
    for path in tiny_llama.iterdir():
        models.import_file(path, path.name)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPE))
    command = [sys.executable, "-m", "quantlib", "run", "--recipe", str(recipe), "--device", "cpu"]
    command += ["--model", models.address, "--store", f"{s3_address}/store"]
    command += ["--publish-to", f"{s3_address}/published", "--run-dir", str(tmp_path / "run")]
    # The server listens on this machine only.
    command += ["--runner", "docker", "--docker-network", "host"]
    environment = os.environ | {"HOME": str(Path.home())}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads((tmp_path / "run" / "run.json").read_text())
    address = outcome["tasks"]["publish"]["outputs"]["parameters"]["address"]
    verify_published(open_store(address))
    # Credentials are given by name: no command line and no log holds them.
    assert s3.OWNER[1] not in done.stdout + done.stderr
    for log in (tmp_path / "run").rglob("log.txt"):
        assert s3.OWNER[1] not in log.read_text()
    assert docker("ps", "-aq", "--filter", f"label=org.quantlib.run={tmp_path / 'run'}") == ""
