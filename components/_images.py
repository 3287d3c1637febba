"""The container images of the steps: the only place with an image name.

The tag is the version of quantlib, so a compiled pipeline always runs the code that it was compiled
from. Set ``QUANTLIB_IMAGE``, ``QUANTLIB_VALIDATE_IMAGE``, ``QUANTLIB_TASKS_IMAGE`` and
``QUANTLIB_WATCH_IMAGE`` when compiling to take the images from a registry of your own, best by
digest; ``make push-images`` writes a lock file that names them so.
"""

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from quantlib import __version__
from quantlib.errors import InvalidInputError, Problem

QUANTLIB_IMAGE = os.environ.get("QUANTLIB_IMAGE", f"quantlib:{__version__}")
"""Every step but those below."""

VALIDATE_IMAGE = os.environ.get("QUANTLIB_VALIDATE_IMAGE", f"quantlib-validate:{__version__}")
"""Adds vLLM: validate judges with it, and plan lets it refuse a model before GPUs are spent."""

TASKS_IMAGE = os.environ.get("QUANTLIB_TASKS_IMAGE", f"quantlib-tasks:{__version__}")
"""Adds lm-eval to that: the step tasks asks served models with it."""

WATCH_IMAGE = os.environ.get("QUANTLIB_WATCH_IMAGE", f"quantlib-watch:{__version__}")
"""The step resolve, ``quantlib watch`` and what verifies for a pod that serves: without torch."""

IMAGE_VARIABLE = "QUANTLIB_IMAGE"
"""In a container, the variable that says which image it runs; reports name it."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FIXED_TAG = re.compile(r"v?\d+\.\d+\.\d+([.+-]?[0-9A-Za-z]+)*|[0-9a-f]{7,40}")
_REFERENCE = re.compile(r"[a-z0-9][\w.:/-]*(@\S+)?")


@dataclass(frozen=True)
class Images:
    """The images of the pipelines.

    Attributes:
        quantlib: Of every step but those below.
        validate: Of plan and validate.
        tasks: Of tasks.
        watch: Of resolve.
    """

    quantlib: str
    validate: str
    tasks: str
    watch: str

    @property
    def of_quantization(self) -> tuple[str, str, str]:
        """What the steps that make and judge a checkpoint run in."""
        return self.quantlib, self.validate, self.tasks

    def of(self, step: str) -> str:
        """The image that a step runs in."""
        others = {
            "plan": self.validate,
            "validate": self.validate,
            "tasks": self.tasks,
            "resolve": self.watch,
        }
        return others.get(step, self.quantlib)


def named_images() -> Images:
    """The images as they are called where no lock file says so."""
    return Images(QUANTLIB_IMAGE, VALIDATE_IMAGE, TASKS_IMAGE, WATCH_IMAGE)


def is_floating(image: str) -> bool:
    """Whether a name may mean another image tomorrow.

    A digest never does. A tag that is a version number or a revision of git is taken not to; any
    other one does, and so does no tag at all.
    """
    name, _, digest = image.partition("@")
    if digest:
        return not _DIGEST.fullmatch(digest)
    tag = name.rpartition("/")[2].partition(":")[2]
    return tag.endswith("-dirty") or not _FIXED_TAG.fullmatch(tag)


def read_lock(path: Path) -> Images:
    """Reads the lock file that ``make images`` and ``make push-images`` write.

    Raises:
        InvalidInputError: It cannot be read, or does not name each image and nothing else.
    """
    where = f"lock file {path}"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError.one(
            where, f"cannot be read: {error.strerror}", "make images, or make push-images"
        ) from None
    except ValueError as error:
        raise InvalidInputError.one(where, f"is no JSON: {error}") from None
    if not isinstance(entries, dict):
        raise InvalidInputError.one(where, "is no mapping")
    names = [field.name for field in dataclasses.fields(Images)]
    problems = [
        Problem(f"{where}: {name}", "is unknown") for name in sorted(entries.keys() - set(names))
    ]
    for name in names:
        image = entries.get(name)
        if image is None:
            problems.append(Problem(f"{where}: {name}", "is missing", "make images"))
        elif not isinstance(image, str) or not _REFERENCE.fullmatch(image):
            problems.append(Problem(f"{where}: {name}", f"is no name of an image: {image!r}"))
    if problems:
        raise InvalidInputError(problems)
    return Images(**entries)
