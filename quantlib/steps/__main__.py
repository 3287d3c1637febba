"""Runs one step as a container of the pipeline.

    python -m quantlib.steps quantize --executor-input '{"inputs": ..., "outputs": ...}'

Exit codes: 0 done, 1 failed, 2 invalid input, 3 the gate refused the checkpoint.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import tempfile

from quantlib.errors import InvalidInputError, QuantlibError, os_error_line
from quantlib.runtime.code_version import require_same_code
from quantlib.runtime.cpus import available_cpus
from quantlib.runtime.log import about, log_problems, start_log
from quantlib.steps import ALL_STEP_NAMES
from quantlib.steps.contract import StepCall


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
    """Runs a step, says what became of it, and returns its exit code."""
    call = None
    try:
        if problems := log_problems():
            raise InvalidInputError(problems)
        require_same_code()
        call = StepCall.parse(executor_input)
        with about(iteration=call.iteration):
            importlib.import_module(f"quantlib.steps.{step}").main(call)
            call.finish()
            keys = [receipt.key for _, receipt in call.made]
            _tell(f"{step}: {call.outcome}", "info", key=keys[0] if keys else None)
    except QuantlibError as error:
        _tell(f"{step}: {error}", "error")
        return error.exit_code
    except OSError as error:
        # One that names no file is of a write: to the scratch folder, which is in the store where
        # that is a folder, and among the temporary files else.
        places = f"{call.parameters.get('store', '')}, {tempfile.gettempdir()}" if call else ""
        _tell(f"{step}: {os_error_line(error, places)}", "error")
        return 1
    except KeyboardInterrupt:
        _tell(f"{step}: interrupted", "error")
        return 130
    return 0


def _tell(line: str, level: str, **fields: str | None) -> None:
    with about(level=level, **fields):
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
