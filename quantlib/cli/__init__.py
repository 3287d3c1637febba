"""The command line: ``quantlib`` or ``python -m quantlib``."""

from __future__ import annotations

import os
import signal
import sys

import click

from quantlib import __version__
from quantlib.cli.compare import compare
from quantlib.cli.deploy import deploy
from quantlib.cli.inspect import inspect
from quantlib.cli.plan import plan
from quantlib.cli.promote import promote
from quantlib.cli.quantize import quantize
from quantlib.cli.rollback import rollback
from quantlib.cli.sign import sign
from quantlib.cli.store import store
from quantlib.cli.unpublish import unpublish
from quantlib.cli.validate_recipe import validate_recipe
from quantlib.cli.verify import verify
from quantlib.cli.watch import watch
from quantlib.errors import (
    InvalidInputError,
    QuantlibError,
    VerificationError,
    os_error_line,
)

_EXAMPLES = """\b
Examples:
  quantlib quantize --model-path ./SmolLM2 --output-path ./SmolLM2-W4 --group-size 64
  quantlib inspect ./SmolLM2
  quantlib plan ./SmolLM2 --gpu h100-80g
  quantlib deploy --model-path ./SmolLM2-W4
  quantlib compare ./SmolLM2-W4 ./SmolLM2-W8
  quantlib verify s3://models/SmolLM2/3f9a… --public-key release.pub
  quantlib store ls s3://bucket/store
  quantlib watch my-recipe.yaml --once --publish-to ./published
  quantlib validate-recipe my-recipe.yaml
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXAMPLES)
@click.version_option(__version__, prog_name="quantlib")
def cli() -> None:
    """Quantize large language models for vLLM."""


cli.add_command(quantize)
cli.add_command(inspect)
cli.add_command(plan)
cli.add_command(deploy)
cli.add_command(compare)
cli.add_command(verify)
cli.add_command(sign)
cli.add_command(unpublish)
cli.add_command(promote)
cli.add_command(rollback)
cli.add_command(store)
cli.add_command(validate_recipe)
cli.add_command(watch)


def main() -> None:
    """Runs the command line; errors raised on purpose are printed without a traceback."""
    # SIGTERM unwinds like Ctrl-C, so that nothing half-written stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (InvalidInputError, VerificationError) as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(error.exit_code)
    except QuantlibError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        print(f"error: {os_error_line(error)}", file=sys.stderr)
        sys.exit(1)
