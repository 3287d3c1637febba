"""From the start of a container to its step's first line of work, in seconds.

    python benchmarks/containers.py [--repeats 5]

A gate says its first line at once; of the other steps, what is timed is a container that imports
what the step works with and then says so. ``--check`` fails where one takes longer than its limit,
which is longer on a machine whose processors have other work too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from components._images import QUANTLIB_IMAGE, VALIDATE_IMAGE, WATCH_IMAGE

_GATE = (
    '{"inputs":{"parameterValues":{"verdict":"failed","reason":"x"}},'
    '"outputs":{"outputFile":"/scratch/output"}}'
)
_LOCKED = (
    *("--read-only", "--cap-drop", "ALL", "--network", "none", "--init"),
    *("--tmpfs", "/tmp", "--tmpfs", "/scratch"),
)
CASES = {
    "resolve": (WATCH_IMAGE, 3.0, "quantlib.steps.resolve, quantlib.sources.hub"),
    "gate": (QUANTLIB_IMAGE, 3.0, ""),
    "plan": (QUANTLIB_IMAGE, 3.0, "quantlib.steps.plan"),
    "smooth": (QUANTLIB_IMAGE, 3.0, "quantlib.steps.smooth"),
    "quantize": (
        QUANTLIB_IMAGE,
        10.0,
        "quantlib.steps.quantize, quantlib.blockwise.quantize_block, "
        "quantlib.quantizers.gptq_solver",
    ),
    "validate": (VALIDATE_IMAGE, 10.0, "quantlib.steps.validate, vllm.entrypoints.llm"),
}
"""Of each step its image, its limit in seconds, and what it imports."""


def seconds_to_first_line(image: str, modules: str) -> float:
    """Starts a container and waits for its first line."""
    command = ["docker", "run", "--rm", *_LOCKED, image, "python"]
    if modules:
        command += ["-c", f"import {modules}; print('ready', flush=True)"]
    else:
        command += ["-m", "quantlib.steps", "gate", "--executor-input", _GATE]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line.decode(errors="replace"))
            if line.startswith((b"ready", b"gate:")):
                seconds = time.monotonic() - started
                break
        else:
            raise RuntimeError(f"{' '.join(command)} did not start:\n{''.join(said[-20:])}")
        process.stdout.read()
    return seconds


def main() -> int:
    """Prints a table; 1 where a limit is passed and that matters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="fail where a limit is passed")
    arguments = parser.parse_args()
    table = Table("step", "median s", "longest s", "limit s", box=None, pad_edge=False)
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    slow = []
    for step, (image, limit, modules) in CASES.items():
        found = [seconds_to_first_line(image, modules) for _ in range(arguments.repeats)]
        median = statistics.median(found)
        table.add_row(step, f"{median:.2f}", f"{max(found):.2f}", f"{limit:.0f}")
        slow += [step] if median > limit * busy else []
    Console().print(table)
    if slow and arguments.check:
        print(f"too slow: {', '.join(slow)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
