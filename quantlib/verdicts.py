"""What a gate says of a checkpoint, and what a process exits with that says it. Imports nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

Outcome = Literal["passed", "inconclusive", "regression", "broken"]
"""From the best to the worst.

passed: every limit is met, with the error of measurement counted against the checkpoint.
inconclusive: the largest sample that may be taken does not tell.
regression: a limit is missed, with the error of measurement counted in the checkpoint's favour.
broken: it does not do what its original does, whatever its figures are.
"""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

EXIT_CODES: dict[str, int] = {"passed": 0, "regression": 3, "inconclusive": 4, "broken": 5}
REFUSED_EXIT_CODES = tuple(code for code in EXIT_CODES.values() if code)


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The worst of several; passed where there is none."""
    return max(outcomes, key=OUTCOMES.index, default="passed")
