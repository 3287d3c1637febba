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

from quantlib.errors import QuantlibError, os_error_line
from quantlib.runtime.code_version import require_same_code
from quantlib.runtime.cpus import available_cpus
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
    call = None
    try:
        require_same_code()
        call = StepCall.parse(arguments.executor_input)
        importlib.import_module(f"quantlib.steps.{arguments.step}").main(call)
        call.finish()
        print(f"{arguments.step}: {call.outcome}", file=sys.stderr, flush=True)
    except QuantlibError as error:
        print(f"{arguments.step}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        # One that names no file is of a write: to the scratch folder, which is in the store where
        # that is a folder, and among the temporary files else.
        places = f"{call.parameters.get('store', '')}, {tempfile.gettempdir()}" if call else ""
        print(f"{arguments.step}: {os_error_line(error, places)}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print(f"{arguments.step}: interrupted", file=sys.stderr, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
