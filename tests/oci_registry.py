"""A real registry for tests: that of the distribution project, as a process on loopback.

It is a program in Go, as is crane, which reads images without any code of ours; `make test-tools`
installs both into the virtual environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports


def find_tool(name: str) -> str:
    """Path of a program; the test is skipped where it is not installed."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"{name} is not installed: make test-tools")
    return found


@contextmanager
def oci_registry(folder: Path, auth: dict[str, Any] | None = None) -> Iterator[str]:
    """A registry; yields the address by which images are named.

    Args:
        folder: It keeps its files there.
        auth: Of its configuration; None to let everybody in.
    """
    [port] = free_ports(1)
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "data")},
            "delete": {"enabled": True},
        },
        "http": {"addr": f"127.0.0.1:{port}"},
        **({"auth": auth} if auth else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(json.dumps(config))
    command = [find_tool("registry"), "serve", str(folder / "config.yml")]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait(port, process, folder / "log.txt")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def crane(*arguments: str) -> str:
    """What crane answers."""
    done = subprocess.run([find_tool("crane"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it asks who that is
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"the registry failed: {log.read_text()[-2000:]}")
