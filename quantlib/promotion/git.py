"""A clone of a repository, by the ``git`` command."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from quantlib.errors import InvalidInputError, QuantlibError

_SECONDS = 300.0
_OVERTAKEN = ("fetch first", "non-fast-forward", "(stale", "already exists", "cannot lock ref")


@dataclass(frozen=True)
class Clone:
    """A clone in a folder of its own; the remote is called ``origin``."""

    folder: Path
    url: str

    def git(self, *arguments: str) -> str:
        """What git prints in the clone; QuantlibError, with what it printed, where it fails."""
        return _git(*arguments, folder=self.folder)

    def has_more(self, branch: str) -> bool:
        """Whether the remote has a branch of this name, with commits that HEAD does not rest on."""
        listed = self.git("ls-remote", "--heads", "origin", f"refs/heads/{branch}")
        tip = f"origin/{branch}"
        return bool(listed) and self.git("merge-base", "HEAD", tip) != self.git("rev-parse", tip)

    def commit(self, message: str) -> None:
        """Commits everything; InvalidInputError where git does not know who commits."""
        self.git("add", "--all")
        try:
            self.git("commit", "--quiet", "--message", message)
        except QuantlibError as error:
            if "Please tell me who you are" not in str(error):
                raise
            raise InvalidInputError.one(
                "git",
                "does not know who commits",
                "set GIT_AUTHOR_NAME, GIT_AUTHOR_EMAIL, GIT_COMMITTER_NAME and "
                "GIT_COMMITTER_EMAIL, or git's user.name and user.email",
            ) from None

    def push(self, branch: str) -> None:
        """Pushes HEAD to a branch of the remote, only ever forwards; else raises QuantlibError."""
        try:
            self.git("push", "--quiet", "origin", f"HEAD:refs/heads/{branch}")
        except QuantlibError as error:
            if not any(word in str(error) for word in _OVERTAKEN):
                raise
            self.git("fetch", "--quiet", "origin", branch)
            who = self.git("log", "-1", "--format=%an <%ae>", "FETCH_HEAD").strip()
            raise QuantlibError(
                f"{without_password(self.url)}: the branch {branch} was pushed to by somebody else "
                f"meanwhile ({who}); nothing was pushed: look at it, then run the same command "
                "again"
            ) from None


@contextmanager
def clone_of(repository: str, base: str | None) -> Iterator[Clone]:
    """Clones a repository, a URL or a path, for a while; with a base, its branch of that name.

    Of a working copy it is the remote ``origin`` that is cloned; the copy itself is left alone.

    Raises:
        InvalidInputError: There is no such repository or branch.
    """
    url = _remote_of(repository)
    with TemporaryDirectory(prefix="quantlib-promote-") as scratch:
        folder = Path(scratch, "clone")
        branch = ("--branch", base) if base else ()
        try:
            _git("clone", "--quiet", *branch, "--", url, str(folder), folder=Path(scratch))
        except QuantlibError as error:
            where = f"--repo {without_password(repository)}"
            raise InvalidInputError.one(where, f"cannot be cloned: {error}") from None
        yield Clone(folder, url)


def without_password(text: str) -> str:
    """A URL, or what git says of one, without who logs in and by which token."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def _remote_of(repository: str) -> str:
    folder = Path(repository)
    if not folder.is_dir():
        return repository
    try:
        url = _git("remote", "get-url", "origin", folder=folder).strip()
    except QuantlibError:
        return str(folder.absolute())
    local = folder / url
    return str(local.resolve()) if "://" not in url and local.is_dir() else url


def _git(*arguments: str, folder: Path) -> str:
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_SECONDS
        )
    except FileNotFoundError:
        raise QuantlibError("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise QuantlibError(f"git {arguments[0]}: no answer within {_SECONDS:.0f} s") from None
    if done.returncode:
        said = without_password(done.stderr.strip() or done.stdout.strip())
        raise QuantlibError(f"git {arguments[0]}: {said}")
    return done.stdout
