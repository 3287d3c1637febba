"""What a run will need: memory, disk and time, before any of it is used. Imports no torch."""

from quantlib.planning.estimate import RangeEstimate, RunEstimate, estimate_run
from quantlib.planning.fit import Limits, fit_problems, parse_quantity
from quantlib.planning.hardware import HARDWARE, Hardware, find_hardware
from quantlib.planning.memory import Memory, quantity

__all__ = [
    "HARDWARE",
    "Hardware",
    "Limits",
    "Memory",
    "RangeEstimate",
    "RunEstimate",
    "estimate_run",
    "find_hardware",
    "fit_problems",
    "parse_quantity",
    "quantity",
]
