"""The errors that quantlib raises on purpose.

Every one of them is printed by the command line without a traceback. ``exit_code`` is what the
process exits with: 2 for input that a person must change, 1 for work that failed and for files that
are not what they should be, 3, 4 and 5 for a checkpoint that was judged and refused
(:mod:`quantlib.verdicts`).

Example:
    >>> raise InvalidInputError([Problem("recipe.yaml: calibration.num_samples", "is 0",
    ...                                  "give at least 1")])
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from quantlib.verdicts import EXIT_CODES, REFUSED_EXIT_CODES

_LONGEST = 2000
"""Characters of a problem's line at most."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an input.

    Attributes:
        where: The file, field, tensor or layer that the problem is in.
        what: What is wrong there.
        remedy: What to do about it; empty where ``what`` says it already.
    """

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}"
        return _one_line(f"{text}; {self.remedy}" if self.remedy else text)


def _one_line(text: str) -> str:
    """A text that may name what a damaged file says, fit for a terminal."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}…"
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


class QuantlibError(Exception):
    """Base class of every error raised on purpose."""

    exit_code = 1


class InvalidInputError(QuantlibError):
    """Input was refused before any work was done on it.

    Attributes:
        problems: Everything that is wrong, not only the first thing found; each once.
    """

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def one(cls, where: str, what: str, remedy: str = "") -> Self:
        """The error of a single problem."""
        return cls([Problem(where, what, remedy)])


@contextmanager
def collected(problems: list[Problem]) -> Iterator[None]:
    """Adds the problems of input that is refused to others, to be said together."""
    try:
        yield
    except InvalidInputError as error:
        problems += error.problems


def os_error_line(error: OSError, where: object = "") -> str:
    """What the system refused, in a line with the path.

    Args:
        error: The system's.
        where: What was being written or read, for an error that names no file, as one of a write
            to an open file does not: a full disk, a quota.
    """
    what = error.strerror or " ".join(str(error).split()) or type(error).__name__
    path = error.filename if error.filename is not None else where
    if isinstance(path, bytes):
        path = path.decode(errors="replace")
    return f"{path}: {what}" if path != "" else what


@contextmanager
def naming(where: object) -> Iterator[None]:
    """Names what is being written in errors of the system that name no file: a full disk, a quota.

    Raises:
        QuantlibError: In the place of such an error.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise QuantlibError(os_error_line(error, where)) from None


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``did you mean …?`` with what is most like a name; empty where nothing is."""
    folded = {_folded(name): name for name in known}
    found = difflib.get_close_matches(_folded(given), folded, n=1)
    return f"did you mean {folded[found[0]]}?" if found else ""


def _folded(name: str) -> str:
    return name.casefold().replace("_", "-")


class UnknownNameError(InvalidInputError):
    """A registry holds nothing under the requested name.

    Attributes:
        name: The name that was asked for.
        known: The names that the registry holds.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        self.name = name
        self.known = tuple(sorted(known))
        what = f"unknown {kind} {name!r}; known: {', '.join(self.known) or 'none'}"
        meant = did_you_mean(name, self.known)
        super().__init__([Problem(kind, what, "; ".join(filter(None, [meant, remedy])))])


class StoreError(QuantlibError):
    """A file of the store is missing, damaged or cannot be written.

    Attributes:
        address: The address of the file, including the store's own.
        what: What is wrong with it.
    """

    def __init__(self, address: str, what: str) -> None:
        self.address = address
        self.what = what
        super().__init__(f"{address}: {what}")


class QuantizationError(QuantlibError):
    """A linear could not be quantized.

    Attributes:
        linear: The name of the linear.
        what: What went wrong.
    """

    def __init__(self, linear: str, what: str) -> None:
        self.linear = linear
        self.what = what
        super().__init__(f"{linear}: {what}")


class StepError(QuantlibError):
    """A step of the pipeline failed.

    Attributes:
        step: The name of the step.
        what: What went wrong.
    """

    def __init__(self, step: str, what: str) -> None:
        self.step = step
        self.what = what
        super().__init__(f"step {step}: {what}")


class VerificationError(QuantlibError):
    """A published checkpoint is not what it claims to be, or not signed as it should be.

    Attributes:
        problems: Everything that is wrong, not only the first thing found.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class GateFailedError(QuantlibError):
    """The quantized checkpoint was judged, and did not pass.

    Attributes:
        outcome: ``regression``, ``inconclusive`` or ``broken``, which decides the exit code.
    """

    def __init__(self, message: str, outcome: str = "regression") -> None:
        self.outcome = outcome
        self.exit_code = EXIT_CODES.get(outcome) or EXIT_CODES["regression"]
        super().__init__(message)


FINAL_EXIT_CODES = (InvalidInputError.exit_code, *REFUSED_EXIT_CODES)
"""Of what another attempt would end with too: it is not made."""
