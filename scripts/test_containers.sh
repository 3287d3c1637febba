#!/usr/bin/env bash
# Builds the images for CPUs, times their start, and runs a real model through the pipeline in them.
# Where no Docker engine answers it installs and starts one, if it may, and ends it again; where it
# may not, it says so and that is all, but for CI=true, where that is a failure, and where it removes
# the images afterwards. BASE_IMAGE, WHEELS and TORCH_INDEX are those of scripts/images.py.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
export DOCKER_BUILDKIT=1
mkdir -p build

fail() {
  echo "error: $*" >&2
  exit 1
}

# For a missing engine only.
skip() {
  [ "${CI:-}" != true ] || fail "$*"
  echo "SKIPPED: $*"
  exit 0
}

install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  { apt-get update && apt-get install --yes --no-install-recommends "$@"; } >/dev/null 2>&1
}

answers() { docker version >/dev/null 2>&1; }

start_engine() {
  command -v dockerd >/dev/null || install docker.io || skip "no Docker engine, and none can be installed"
  [ "$(id -u)" = 0 ] || skip "no Docker engine answers, and only root can start one"
  dockerd --storage-driver=overlay2 >build/dockerd.log 2>&1 &
  engine=$!
  for _ in $(seq 60); do
    answers && return
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.5
  done
  kill "$engine" 2>/dev/null || true
  skip "the Docker engine does not start: $(tail -n 1 build/dockerd.log)"
}

# Clients from 23 on build with BuildKit by the plugin buildx only.
find_builder() {
  local client version
  for client in "${DOCKER:-docker}" /usr/bin/docker; do
    version=$("$client" version --format '{{.Client.Version}}' 2>/dev/null) || continue
    if [ "${version%%.*}" -lt 23 ] || "$client" buildx version >/dev/null 2>&1; then
      echo "$client"
      return
    fi
  done
  return 1
}

# A base of Debian's own packages, where none can be pulled.
make_base() {
  local folder
  command -v debootstrap >/dev/null || install debootstrap \
    || fail "no base image can be pulled, and debootstrap cannot be installed: set BASE_IMAGE"
  [ "$(id -u)" = 0 ] || fail "no base image can be pulled, and only root can make one: set BASE_IMAGE"
  folder=$(mktemp -d)
  echo "making a base image"
  debootstrap --variant=minbase --include=ca-certificates bookworm "$folder" >build/debootstrap.log \
    || fail "no base image can be made: $(tail -n 1 build/debootstrap.log)"
  # As in Debian's own images: apt keeps neither packages nor caches.
  echo 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache ""; APT::Keep-Downloaded-Packages "0";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };' \
    >"$folder/etc/apt/apt.conf.d/docker-clean"
  rm -rf "$folder"/var/cache/apt/* "$folder"/var/lib/apt/lists/*
  tar -C "$folder" -c . | docker import - "$1" >/dev/null
  rm -rf "$folder"
}

# The machine's own certificate authorities and package index, so that pip works in a build.
adapt_base() {
  local certificates=/usr/local/share/ca-certificates index
  index=$("$python" -m pip config list | sed -n "s/^.*\.index-url='\(http.*\)'$/\1/p" | head -n 1)
  ls "$certificates"/*.crt >/dev/null 2>&1 || certificates=$(mktemp -d)
  "$builder" build --quiet --tag "$2" --file - "$certificates" >/dev/null <<DOCKERFILE
FROM $1
COPY . /usr/local/share/ca-certificates
RUN if command -v update-ca-certificates; then update-ca-certificates; fi
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \\
    ${index:+PIP_INDEX_URL=$index UV_DEFAULT_INDEX=$index}
DOCKERFILE
}

# pip's local wheels of torch and torchvision for CPUs, where a machine has them.
make_wheels() {
  local folder
  for folder in $("$python" -m pip config list | sed -n "s/^.*\.find-links='\(.*\)'$/\1/p"); do
    if ls "$folder"/torch-*+cpu-*.whl "$folder"/torchvision-*+cpu-*.whl >/dev/null 2>&1; then
      printf 'FROM scratch\nCOPY torch-*+cpu-*.whl torchvision-*+cpu-*.whl /\n' \
        | "$builder" build --quiet --tag "$1" --file - "$folder" >/dev/null
      echo "$1"
      return
    fi
  done
}

engine=
finish() {
  if [ "${CI:-}" = true ]; then
    docker image ls --quiet --filter reference='quantlib*' \
      | sort --unique | xargs --no-run-if-empty docker image rm --force >/dev/null || true
    "${builder:-docker}" builder prune --all --force >/dev/null || true
  fi
  if [ -n "$engine" ]; then
    kill "$engine" || true
    wait "$engine" || true
  fi
}
answers || start_engine
trap finish EXIT
builder=$(find_builder) || fail "docker has no BuildKit: install the plugin buildx"

if [ -z "${BASE_IMAGE:-}" ]; then
  public=$(sed -n 's/^ARG BASE_IMAGE=//p' images/Dockerfile)
  debian=quantlib-test/debian:bookworm
  if ! docker image inspect "$public" >/dev/null 2>&1 \
    && ! timeout 120 docker pull --quiet "$public" >/dev/null 2>&1; then
    docker image inspect "$debian" >/dev/null 2>&1 || make_base "$debian"
    public=$debian
  fi
  BASE_IMAGE=quantlib-test/base:local
  adapt_base "$public" "$BASE_IMAGE"
fi
[ -n "${WHEELS:-}" ] || WHEELS=$(make_wheels quantlib-test/wheels:local)

echo "building the images on $BASE_IMAGE"
"$python" scripts/images.py build --docker "$builder" --torch cpu --base-image "$BASE_IMAGE" \
  --wheels "$WHEELS" --torch-index "${TORCH_INDEX:-}" >build/images.log 2>&1 \
  || { tail -n 40 build/images.log; exit 1; }
tail -n 3 build/images.log
docker image ls --filter label=org.opencontainers.image.title

echo "from the start of a container to its first line of work"
"$python" benchmarks/containers.py --check

echo "SmolLM2 through the pipeline, each step in a container"
PYTHONPATH=scripts "$python" -c \
  "from pathlib import Path; import smollm2; smollm2.download_smollm2(Path('build/containers/model'))"
"$python" -m pytest tests/containers -m containers --durations 5
