"""Environments of the tools that quantlib is compared with, each with packages of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "build" / "benchmarks" / "environments"

PACKAGES = {
    "llm-compressor": ("torch==2.13.0", "llmcompressor==0.14.0.1"),
    "auto-round": ("torch==2.13.0", "auto-round==0.16.1", "compressed-tensors==0.20.1"),
    "modelopt": ("torch==2.13.0", "nvidia-modelopt[hf]==0.47.0"),
    "hqq": ("torch==2.13.0", "hqq==0.2.8.post1"),
}
"""What is installed for each tool."""


def python_of(tool: str) -> Path:
    """The interpreter of a tool's environment, which is made when it is first asked for."""
    folder, wanted = FOLDER / tool, "\n".join(PACKAGES[tool])
    python, done = folder / "bin" / "python", folder / ".done"
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"installing {', '.join(PACKAGES[tool])}", flush=True)
    uv = [sys.executable, "-m", "uv"]
    subprocess.run(
        [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True
    )
    subprocess.run(
        [*uv, "pip", "install", "--quiet", "--python", python, *PACKAGES[tool]], check=True
    )
    done.write_text(wanted)
    return python
