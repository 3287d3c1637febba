"""The Dockerfile, as far as no engine is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "images" / "Dockerfile"


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_package_is_installed_by_its_hash() -> None:
    commands = re.sub(r"\\\n", " ", DOCKERFILE.read_text()).splitlines()
    installing = [line for line in commands if re.search(r"\b(uv )?pip install\b", line)]
    assert len(installing) == 7
    # Our own files, and torch from elsewhere than PyPI, have none in the lock.
    unhashed = [line for line in installing if "--require-hashes" not in line]
    assert [line for line in unhashed if "--target /opt/quantlib /source" in line] == unhashed
    assert not [line for line in installing if "extra-index-url" in line]


def test_the_build_sees_what_it_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE):
        for source in sources.split():
            assert f"!{source}" in ignored
            assert (ROOT / source).exists()


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton wheel for this platform")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_triton_finds_its_launcher_where_no_compiler_is(tmp_path: Path) -> None:
    images = ROOT / "images"
    shutil.copy(images / "cc", tmp_path / "cc")
    subprocess.run([images / "build_launcher.sh", sys.executable, tmp_path], check=True)
    # A library with every function that the module takes from libcuda, as a driver has it.
    needed = subprocess.run(
        ["nm", "-D", "-u", tmp_path / "cuda_utils.so"], capture_output=True, text=True, check=True
    ).stdout.split()
    functions = "".join(f"int {name}(void) {{ return 0; }}" for name in needed if name[:2] == "cu")
    (tmp_path / "stub.c").write_text(functions)
    stub = ["gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-o", tmp_path / "libcuda.so.1"]
    subprocess.run([*stub, tmp_path / "stub.c"], check=True)
    program = """
import os, sys
from triton.backends.nvidia import driver
from triton.runtime.build import compile_module_from_src
places = {"library_dirs": driver.library_dirs(), "include_dirs": driver.include_dirs}
source = open(os.path.join(driver.dirname, "driver.c")).read()
module = compile_module_from_src(source, "cuda_utils", **places, libraries=driver.libraries)
print(module.launch, module.load_binary)
try:
    compile_module_from_src(source, "other", **places)
except Exception:
    print("refused")
"""
    environment = os.environ | {
        "CC": str(tmp_path / "cc"),
        "LD_LIBRARY_PATH": str(tmp_path),
        "TRITON_LIBCUDA_PATH": str(tmp_path),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.count("built-in function") == 2, done.stderr
    assert done.stdout.endswith("refused\n")
    assert "this image holds no C compiler, and was asked to build" in done.stderr


def test_what_is_in_the_images_is_listed_by_syft(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "images.py", tmp_path / "scripts")
    (tmp_path / "syft").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "syft").chmod(0o755)
    command = [sys.executable, tmp_path / "scripts" / "images.py", "sbom"]
    command += ["--syft", str(tmp_path / "syft")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "build/images.lock.json is missing: make images\n")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "images.lock.json").write_text('{"watch": "r.example/w@sha256:12"}')
    done = subprocess.run(command, capture_output=True, text=True)
    path = tmp_path / "build" / "sbom" / "watch.cdx.json"
    assert f"scan docker:r.example/w@sha256:12 --output cyclonedx-json={path}\n" in done.stdout
    command[-1] = str(tmp_path / "nothing")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "nothing cannot be started" in done.stderr
