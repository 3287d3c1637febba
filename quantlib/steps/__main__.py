"""Runs one step as a container of the pipeline.

    python -m quantlib.steps quantize --executor-input '{"inputs": ..., "outputs": ...}'

Exit codes: 0 done, 1 failed, 2 invalid input; of the gate 3 the checkpoint is worse than the limits
allow, 4 that is not known, 5 it is broken.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import tempfile
import time

from quantlib.errors import InvalidInputError, QuantlibError, os_error_line
from quantlib.runtime.code_version import require_same_code
from quantlib.runtime.cpus import available_cpus
from quantlib.runtime.log import about, start_log
from quantlib.steps import ALL_STEP_NAMES
from quantlib.steps.contract import StepCall
from quantlib.steps.ending import tell_ending
from quantlib.telemetry.settings import environment_problems


def main() -> int:
    """Parses the arguments, runs the step and writes the executor output."""
    parser = argparse.ArgumentParser(prog="python -m quantlib.steps", description=__doc__)
    parser.add_argument("step", choices=ALL_STEP_NAMES)
    parser.add_argument(
        "--executor-input", required=True, help="the JSON that Kubeflow substitutes for {{$}}"
    )
    arguments = parser.parse_args()
    # SIGTERM ends a pod: unwind, so that scratch folders and child processes go too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Before torch or vLLM is imported, here or in a process of this one.
    os.environ.setdefault("OMP_NUM_THREADS", str(available_cpus()))
    start_log()
    with about(step=arguments.step):
        return _run(arguments.step, arguments.executor_input)


def _run(step: str, executor_input: str) -> int:
    """Runs a step, tells what became of it, and returns its exit code."""
    started, call = time.monotonic(), None

    def end(exit_code: int, said: object, **fields: str | None) -> int:
        with about(level="error" if exit_code else "info", **fields):
            print(f"{step}: {said}", file=sys.stderr, flush=True)
        tell_ending(step, call, exit_code, str(said), time.monotonic() - started)
        return exit_code

    if problems := environment_problems():
        print(f"{step}: {InvalidInputError(problems)}", file=sys.stderr, flush=True)
        return InvalidInputError.exit_code
    try:
        require_same_code()
        call = StepCall.parse(executor_input)
        with about(iteration=call.iteration):
            importlib.import_module(f"quantlib.steps.{step}").main(call)
            call.finish()
            keys = [receipt.key for _, receipt in call.made]
            said = "found in the store" if call.is_reused else "done"
            return end(0, said, key=keys[0] if keys else None)
    except QuantlibError as error:
        return end(error.exit_code, error)
    except OSError as error:
        # One that names no file is of a write: to the scratch folder, which is in the store where
        # that is a folder, and among the temporary files else.
        places = f"{call.parameters.get('store', '')}, {tempfile.gettempdir()}" if call else ""
        return end(1, os_error_line(error, places))
    except KeyboardInterrupt:
        return end(130, "interrupted")
    except Exception as error:
        tell_ending(step, call, 1, repr(error), time.monotonic() - started)
        raise


if __name__ == "__main__":
    sys.exit(main())
