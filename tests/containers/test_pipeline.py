"""A real model through the whole pipeline, each step in a container of its image."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from containers.conftest import ROOT, Watched, containers_of, pipeline_command

from components._images import QUANTLIB_IMAGE, named_images
from quantlib.report.manifest import verify_published
from quantlib.steps import STEP_NAMES
from quantlib.store import LocalStore


def test_the_checkpoint_passes_and_is_published(watched: Watched) -> None:
    assert watched.exit_code == 0, watched.output
    (manifest,) = (watched.folder / "published").glob("*/*/manifest.json")
    verify_published(LocalStore(manifest.parent))
    report = json.loads((manifest.parent / "quantization_report.json").read_text())
    assert report["evaluation"]["engine"] == "vllm"
    assert report["evaluation"]["gate"]["passed"] is True
    assert report["provenance"]["image"] == QUANTLIB_IMAGE


def test_every_container_was_locked_down(watched: Watched) -> None:
    # The gate's is gone within a moment, and may not be seen.
    assert set(watched.containers) | {"gate"} == set(STEP_NAMES)
    assert len(watched.containers["quantize"]) == 4
    for step, containers in watched.containers.items():
        for container in containers:
            host = container["HostConfig"]
            # The caller's, so that no file has to change hands; root has no capabilities there.
            assert container["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"
            assert host["ReadonlyRootfs"] is True
            assert host["CapDrop"] == ["ALL"]
            assert host["SecurityOpt"] == ["no-new-privileges"]
            assert host["Privileged"] is False
            assert host["NetworkMode"] == "none"  # the model and the store are folders here
            assert container["Config"]["Image"] == named_images().of(step)


def test_containers_write_to_their_own_folders_and_the_store(watched: Watched) -> None:
    folder = watched.folder
    for step, containers in watched.containers.items():
        for container in containers:
            written = {Path(m["Destination"]) for m in container["Mounts"] if m["RW"]}
            own = {path for path in written if path.parent == folder / "run"}
            assert len(own) == 1
            allowed = {Path("/scratch")}
            allowed |= {folder / "store"} if step != "gate" else set()
            allowed |= {folder / "published"} if step == "publish" else set()
            assert written - own == allowed


def test_nothing_of_the_run_is_left(watched: Watched) -> None:
    assert containers_of(watched.folder / "run") == []
    assert list((watched.folder / "run").glob("*/scratch")) == []
    assert list((watched.folder / "store" / "tmp").iterdir()) == []


def test_a_runner_that_is_ended_leaves_no_container(tmp_path: Path) -> None:
    command = pipeline_command(tmp_path, ROOT / "scripts" / "demo.yaml")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    log = tmp_path / "run" / "calibrate" / "log.txt"
    deadline = time.monotonic() + 120
    while not log.exists() or not containers_of(tmp_path / "run"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert containers_of(tmp_path / "run") == []
