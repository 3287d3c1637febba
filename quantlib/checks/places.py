"""Why a folder cannot be written: no permission, or it is, holds or lies in what is the user's.

Symbolic links, relative paths, bind mounts and file systems that ignore case give one folder many
names. Two names are of one folder where the system says so: device and inode are the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quantlib.errors import Problem
from quantlib.sources.space import existing_ancestor

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")
_OTHER = "choose another"


@dataclass(frozen=True)
class Place:
    """A file or folder of the user's that a run must leave as it is.

    Attributes:
        what: What it is to the run: ``the model``.
        path: Where it is.
        inside: Whether nothing may be written in it either.
    """

    what: str
    path: Path
    inside: bool = True


def standing_places() -> list[Place]:
    """What no run may take for its own: the root, the home folder and the current one."""
    places = [Place("the root of the file system", Path("/"), inside=False)]
    home = Path(os.path.expanduser("~"))
    if home.is_absolute() and home != Path("/"):
        places.append(Place("the home folder", home, inside=False))
    return [*places, Place("the current folder", Path.cwd(), inside=False)]


def model_places(model: Path) -> list[Place]:
    """A model, and the files that lie elsewhere and are linked into it."""
    places = [Place("the model", model)]
    if model.is_dir():
        linked = (entry for entry in model.iterdir() if entry.is_symlink())
        places += [Place("a file of the model", Path(os.path.realpath(file))) for file in linked]
    return places


def conflicts(folder: Path, places: Iterable[Place]) -> list[Problem]:
    """Why a folder cannot be written: it is, holds or lies in one of ``places``; one problem each.

    Args:
        folder: Need not exist yet.
        places: What must stay as it is.
    """
    problems = []
    for place in places:
        outer, inner = holds(folder, place.path), holds(place.path, folder)
        if outer and inner:
            what = f"is {place.what}"
        elif outer:
            what = f"holds {place.what} ({place.path})"
        elif inner and place.inside:
            what = f"lies in {place.what} ({place.path})"
        else:
            continue
        problems.append(Problem(str(folder), what, "choose another folder"))
    return problems


def local_path(address: str) -> Path | None:
    """The path that an address names; None where it is empty or elsewhere."""
    address = address.removeprefix("file://")
    if not address or "://" in address:
        return None
    return Path(os.path.expanduser(address)).absolute()


def writable_problems(folder: Path) -> list[Problem]:
    """Why a folder cannot be made or written to."""
    try:
        ancestor = existing_ancestor(folder.absolute())
        if not ancestor.is_dir():
            return [Problem(str(folder), f"{ancestor} is no folder", _OTHER)]
        if os.statvfs(ancestor).f_flag & os.ST_RDONLY:
            return [Problem(str(folder), f"{ancestor} is on a read-only file system", _OTHER)]
        if not os.access(ancestor, os.W_OK | os.X_OK):
            return [Problem(str(folder), f"no permission to write in {ancestor}", _OTHER)]
    except OSError as error:
        return [Problem(str(folder), f"cannot be read: {error.strerror}", _OTHER)]
    return []


def holds(folder: Path, path: Path) -> bool:
    """Whether ``path`` is ``folder`` or lies in it. Neither need exist."""
    names = set(_names(path))
    above = {place for name in names for place in (name, *name.parents)}
    if Path(os.path.realpath(folder)) in above:
        return True
    wanted = _identity(folder)
    return wanted is not None and any(_identity(place) == wanted for place in above)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _names(path: Path) -> Iterator[Path]:
    """What a path is called: as given, without symbolic links, and through other mounts."""
    given, real = Path(os.path.abspath(path)), Path(os.path.realpath(path))
    if Path(os.path.realpath(given)) == real:
        yield given
    yield real
    yield from _mounted_names(existing_ancestor(real))


def _mounted_names(path: Path) -> Iterator[Path]:
    """Other names that bind mounts give to a path that exists."""
    mounts = _mounts()
    above = [mount for mount in mounts if path.is_relative_to(mount[2])]
    if not above:
        return
    # Of mounts at one place, the last one is the one that is seen.
    device, root, point = max(reversed(above), key=lambda mount: len(mount[2].parts))
    inside, identity = root / path.relative_to(point), _identity(path)
    for other_device, other_root, other_point in mounts:
        if other_device == device and inside.is_relative_to(other_root):
            name = other_point / inside.relative_to(other_root)
            if _identity(name) == identity:
                yield name


def _mounts() -> list[tuple[str, Path, Path]]:
    """Of every mount its device, which folder of the file system it shows, and where."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    fields = (line.split(" ") for line in lines)
    return [(of[2], Path(_unescaped(of[3])), Path(_unescaped(of[4]))) for of in fields]


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
