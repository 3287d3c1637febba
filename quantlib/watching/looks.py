"""Looks at watched recipes, and starts a run for every release that is not quantized yet."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

from quantlib.checks.recipe import load_recipe
from quantlib.checks.remote import require_reachable
from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.publishing.opening import open_destination
from quantlib.recipe import AskedRecipe
from quantlib.runtime.keeper import kept
from quantlib.runtime.process_group import end_kept
from quantlib.store import lease, open_store
from quantlib.verdicts import EXIT_CODES, REFUSED_EXIT_CODES
from quantlib.watching.jobs import Job, find_job

_GRACE = 60.0
"""Seconds that a run gets to end its steps, which get less."""

_SUFFIXES = (".yaml", ".yml", ".json")


class Outcome(StrEnum):
    """What became of one recipe in one look."""

    UP_TO_DATE = "up to date"
    DONE = "quantized"
    STARTED = "started"
    REFUSED = "refused by the gate"
    FAILED = "failed"

    @property
    def level(self) -> str:
        """Of the line that tells of it."""
        return {"failed": "error", "refused by the gate": "warning"}.get(self.value, "info")


@dataclass(frozen=True)
class Look:
    """One look at one recipe.

    Attributes:
        detail: Where the checkpoint is, or what went wrong.
    """

    recipe: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Starter:
    """How runs are started.

    Attributes:
        store: Where the steps keep their work.
        destination: Where checkpoints are published; empty for the recipe's.
        runner: process, docker or kubeflow.
        arguments: Further arguments of ``quantlib run``.
        images: What the steps run in.
        timeout: Seconds that a run may take.
    """

    store: str
    destination: str
    runner: str
    arguments: tuple[str, ...]
    images: tuple[str, ...]
    timeout: float


def recipe_names(given: Sequence[str]) -> list[str]:
    """What was given, with the recipes in a folder in the place of the folder.

    Raises:
        InvalidInputError: A folder holds none.
    """
    names: list[str] = []
    for name in given:
        if not Path(name).is_dir():
            names.append(name)
            continue
        found = sorted(path for path in Path(name).iterdir() if path.suffix in _SUFFIXES)
        if not found:
            raise InvalidInputError.one(name, "holds no recipe", f"end its name in {_SUFFIXES[0]}")
        names += map(str, found)
    return names


def exit_code(looks: Sequence[Look]) -> int:
    """What a watcher that looks once exits with after these looks."""
    outcomes = {look.outcome for look in looks}
    if Outcome.FAILED in outcomes:
        return 1
    return EXIT_CODES["regression"] if Outcome.REFUSED in outcomes else 0


def look(name: str, starter: Starter) -> Look:
    """Looks at one recipe, and runs what is to be done; what fails is in what is returned."""
    try:
        recipe = load_recipe(name)
        job = find_job(recipe, starter.destination, starter.images)
        place = open_destination(job.destination)
        if job.published is not None:
            return Look(name, Outcome.UP_TO_DATE, job.published)
        if starter.runner == "kubeflow":
            require_reachable(recipe, job.release.address, starter.store, job.destination)
        with lease(open_store(starter.store), f"jobs/{job.digest.removeprefix('sha256:')}"):
            # Another watcher may have had it until now.
            if (published := place.published_of(job.digest)) is not None:
                return Look(name, Outcome.UP_TO_DATE, published)
            code = _run(name, recipe, job, starter)
    except (QuantlibError, OSError) as error:
        return Look(name, Outcome.FAILED, "; ".join(str(error).splitlines()))
    if code in REFUSED_EXIT_CODES:
        return Look(name, Outcome.REFUSED, job.release.address)
    if code is None:
        what = f"the run took more than {starter.timeout:.0f} s and was ended"
        return Look(name, Outcome.FAILED, what)
    if code:
        return Look(name, Outcome.FAILED, f"the run exited with {code}")
    if starter.runner == "kubeflow":
        return Look(name, Outcome.STARTED, job.release.address)
    published = place.published_of(job.digest)
    return Look(name, Outcome.DONE, published or job.release.address)


def _run(name: str, recipe: AskedRecipe, job: Job, starter: Starter) -> int | None:
    """Runs a job and returns its exit code; None where it took too long and was ended."""
    with TemporaryDirectory(prefix="quantlib-watch-") as folder:
        # The file itself may be another one by now than the job is of.
        file = Path(folder, f"{Path(name).stem}.json")
        file.write_text(recipe.canonical_json(), encoding="utf-8")
        command = [sys.executable, "-m", "quantlib", "run", "--recipe", str(file)]
        command += ["--runner", starter.runner]
        command += ["--model", job.release.address, "--store", starter.store]
        command += ["--publish-to", job.destination, "--job", job.digest, *starter.arguments]
        process = subprocess.Popen(kept(command, _GRACE), start_new_session=True)
        try:
            return process.wait(starter.timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_kept(process, _GRACE)
