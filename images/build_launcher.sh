#!/bin/sh
# Builds the module that Triton would compile at its first kernel, so that the image needs no
# compiler. It calls libcuda, which the container runtime brings: an empty library stands in for it.
# (Triton 3, triton/backends/nvidia/driver.py: CudaUtils.)
#
#   build_launcher.sh PYTHON FOLDER
set -eu
include=$("$1" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
# Found without importing it, which would look for a GPU.
nvidia=$("$1" -c 'from importlib.util import find_spec
print(find_spec("triton").submodule_search_locations[0] + "/backends/nvidia")')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${CC:-gcc}" -shared -Wl,-soname,libcuda.so.1 -o "$work/libcuda.so.1" -x c /dev/null
"${CC:-gcc}" -O3 -shared -fPIC -Wno-psabi "$nvidia/driver.c" -o "$2/cuda_utils.so" \
  -I"$nvidia/include" -I"$include" -L"$work" -Wl,--no-as-needed -l:libcuda.so.1
