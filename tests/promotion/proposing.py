"""Promotion by a commit, as tests ask for it, and what became of the repository."""

import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from promotion.conftest import Repository

from quantlib.cli.promote import promote
from quantlib.errors import InvalidInputError

OVERLAY = "overlays/production"
PATCH = f"{OVERLAY}/promoted-tiny.yaml"
BASE = Path("base")
PLAIN = "namespace: serving\nresources:\n- ../../base\n"
BESIDE = "resources:\n- ../../base\n"


def run(published: Path, repository: Repository, *further: str, **replaced: str) -> Result:
    options = {
        "--service": "tiny",
        "--namespace": "serving",
        "--repo": str(repository.remote),
        "--overlay": OVERLAY,
        "--storage-uri": f"s3://models/tiny/{published.name}",
    } | {f"--{name.replace('_', '-')}": value for name, value in replaced.items()}
    words = [word for option in options.items() for word in option]
    return CliRunner().invoke(promote, [str(published), *words, *further])


def refusal(published: Path, repository: Repository, *further: str, **replaced: str) -> str:
    """Why a promotion is refused, which leaves the repository alone."""
    before = repository.branches()
    refused = run(published, repository, *further, **replaced)
    assert isinstance(refused.exception, InvalidInputError), refused.exception
    assert repository.branches() == before
    return str(refused.exception)


def write(repository: Repository, **files: str) -> None:
    """Commits files, by their names in the overlay and ``base``; the overlay has no other patch."""
    places = {"service": BASE / "service.yaml", "base": BASE / "kustomization.yaml"}
    files = {"kustomization": PLAIN} | files
    for name, text in files.items():
        place = places.get(name, Path(OVERLAY, f"{name}.yaml"))
        (repository.copy / place).write_text(text)
    repository.commit()


def branch_of(published: Path) -> str:
    return f"promote/tiny-{published.name[:12]}"


def merge(repository: Repository, branch: str) -> None:
    repository.git("fetch", "--quiet", "origin")
    repository.git("merge", "--quiet", "--no-edit", "--no-ff", f"origin/{branch}")
    repository.git("push", "--quiet", "origin", "HEAD:main")


def built(repository: Repository) -> dict[str, Any]:
    """The service as kustomize builds it."""
    if not which("kubectl"):
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(repository.copy / OVERLAY)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)
