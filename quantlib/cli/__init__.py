"""The command line: ``quantlib`` or ``python -m quantlib``."""

from __future__ import annotations

import importlib
import os
import signal
import sys

import click

from quantlib import __version__
from quantlib.errors import (
    InvalidInputError,
    QuantlibError,
    VerificationError,
    os_error_line,
)

_EXAMPLES = """\b
Examples:
  quantlib quantize --model ./SmolLM2 --output ./SmolLM2-W4 --group-size 64
  quantlib evaluate ./SmolLM2 ./SmolLM2-W4
  quantlib inspect ./SmolLM2
  quantlib plan ./SmolLM2 --gpu h100-80g
  quantlib deploy --model ./SmolLM2-W4
  quantlib compare ./SmolLM2-W4 ./SmolLM2-W8
  quantlib verify s3://models/SmolLM2/3f9a… --public-key release.pub
  quantlib store ls s3://bucket/store
  quantlib watch my-recipe.yaml --once --publish-to ./published
  quantlib validate-recipe my-recipe.yaml
"""


COMMANDS = {
    "quantize": "quantlib.cli.quantize:quantize",
    "run": "pipelines.commands.run:run_command",
    "evaluate": "quantlib.cli.evaluate:evaluate",
    "inspect": "quantlib.cli.inspect:inspect",
    "plan": "quantlib.cli.plan:plan",
    "compare": "quantlib.cli.compare:compare",
    "convert": "quantlib.cli.convert:convert",
    "deploy": "quantlib.cli.deploy:deploy",
    "verify": "quantlib.cli.verify:verify",
    "sign": "quantlib.cli.sign:sign",
    "unpublish": "quantlib.cli.unpublish:unpublish",
    "promote": "quantlib.cli.promote:promote",
    "rollback": "quantlib.cli.rollback:rollback",
    "compile": "pipelines.commands.compile:compile_command",
    "upload": "pipelines.commands.upload:upload_command",
    "schedule": "pipelines.commands.schedule:schedule_command",
    "watch": "pipelines.commands.watch:watch",
    "store": "quantlib.cli.store:store",
    "validate-recipe": "quantlib.cli.validate_recipe:validate_recipe",
}
"""Where each command is. It is imported when it is called: no command needs what another one does,
and the library does not need the workflows, which are built on it."""


def command_of(name: str) -> click.Command:
    """A command by its name."""
    module, _, variable = COMMANDS[name].partition(":")
    command: click.Command = getattr(importlib.import_module(module), variable)
    return command


class Commands(click.Group):
    """The commands of ``COMMANDS``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them."""
        if cmd_name not in COMMANDS:
            return None
        return command_of(cmd_name)


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXAMPLES
)
@click.version_option(__version__, prog_name="quantlib")
def cli() -> None:
    """Quantize large language models for vLLM."""


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
