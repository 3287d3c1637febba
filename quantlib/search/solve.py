"""Which choice costs least: a multiple-choice knapsack, solved exactly by HiGHS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version


def solver_name() -> str:
    """What solves it: ``HiGHS 1.16.0``."""
    return f"HiGHS {version('highspy')}"


@dataclass(frozen=True)
class Option:
    """One of the things that something can be.

    Attributes:
        name: Its name.
        size: What it takes.
        cost: What it costs; less is better.
    """

    name: str
    size: int
    cost: float


def least_cost(options: Sequence[Sequence[Option]], size: float) -> list[Option] | None:
    """An option for each, of which the costs' sum is least where sizes may sum up to ``size``.

    Args:
        options: What each can be.
        size: What all together may take.

    Returns:
        None where no choice is so small.
    """
    return _solved(options, minimized="cost", limited="size", limit=size)


def least_size(options: Sequence[Sequence[Option]], cost: float) -> list[Option] | None:
    """An option for each, of which the sizes' sum is least where costs may sum up to ``cost``.

    Returns:
        None where no choice costs so little.
    """
    return _solved(options, minimized="size", limited="cost", limit=cost)


def _solved(
    options: Sequence[Sequence[Option]], *, minimized: str, limited: str, limit: float
) -> list[Option] | None:
    import highspy

    class Quiet(highspy.Highs):
        def enableCallbacks(self) -> None:  # noqa: N802 - is highspy's name; it would say hello
            pass

    solver = Quiet()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("mip_rel_gap", 0.0)
    solver.setOptionValue("mip_abs_gap", 0.0)
    every = [option for each in options for option in each]
    # Solvers take what is below about 1e-7 for nothing: both are counted in shares of the largest.
    of = {
        field: max((getattr(option, field) for option in every), default=1.0) or 1.0
        for field in (minimized, limited)
    }
    variables = [[solver.addBinary() for _ in each] for each in options]
    for own in variables:
        solver.addConstr(sum(own) == 1)
    flat = [variable for own in variables for variable in own]
    taken = sum(
        getattr(option, limited) / of[limited] * variable
        for option, variable in zip(every, flat, strict=True)
    )
    solver.addConstr(taken <= limit / of[limited])
    solver.minimize(
        sum(
            getattr(option, minimized) / of[minimized] * variable
            for option, variable in zip(every, flat, strict=True)
        )
    )
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    return [
        next(
            option for option, variable in zip(each, own, strict=True) if solver.val(variable) > 0.5
        )
        for each, own in zip(options, variables, strict=True)
    ]
