"""The one program: its commands, and the words that they share."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import click
import pytest

from pipelines.commands.options import Job, job_options
from quantlib.cli import COMMANDS, command_of

WORKFLOW = ("run", "compile", "upload", "schedule", "watch")


def options_of(command: click.Command) -> dict[str, click.Option]:
    """The options of a command by each of their spellings."""
    return {
        spelling: option
        for option in command.params
        if isinstance(option, click.Option)
        for spelling in option.opts
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_and_shows_how(name: str) -> None:
    command = command_of(name)
    assert command.help
    examples = command.epilog or "".join(
        sub.epilog or "" for sub in getattr(command, "commands", {}).values()
    )
    assert f"quantlib {name}" in examples


@pytest.mark.parametrize("name", ["", *WORKFLOW])
def test_help_needs_neither_kfp_nor_torch(name: str) -> None:
    arguments = [name, "--help"] if name else ["--help"]
    program = (
        "import sys; sys.modules['kfp'] = sys.modules['torch'] = None;"
        f"sys.argv[1:] = {arguments!r}; from quantlib.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("quantize", {"--model": "--model-path", "--output": "--output-path"}),
        ("quantize", {"--recipe": "--config"}),
        ("deploy", {"--model": "--model-path"}),
        ("plan", {"--num-ranges": "--ranges"}),
        ("sign", {"--recipe": "--config"}),
    ],
)
def test_older_spellings_mean_the_same(name: str, spellings: dict[str, str]) -> None:
    options = options_of(command_of(name))
    for word, older in spellings.items():
        assert options[word] is options[older]
        assert options[word].opts[0] == word


@pytest.mark.parametrize(
    ("arguments", "recipe"),
    [([], "gptq"), (["awq"], "awq"), (["--recipe", "awq"], "awq")],
)
def test_a_recipe_may_stand_without_its_word(arguments: list[str], recipe: str) -> None:
    given = []

    @click.command
    @job_options
    def take(job: Job) -> None:
        given.append(job)

    take.main(["--model", "m", *arguments], standalone_mode=False)
    assert (given[0].recipe, given[0].model) == (recipe, "m")
    with pytest.raises(click.BadParameter, match="is given twice: awq and hqq"):
        take.main(["hqq", "--recipe", "awq"], standalone_mode=False)


def test_the_name_of_before_starts_the_same_program() -> None:
    command = [sys.executable, "-m", "pipelines", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "--publish-to" in done.stdout


def test_one_word_for_one_thing() -> None:
    kinds: dict[str, Any] = {}
    for name in ("quantize", *WORKFLOW):
        for spelling, option in options_of(command_of(name)).items():
            kinds.setdefault(spelling, {})[name] = option.is_flag
    assert set(kinds["--recipe"]) == {"quantize", "run", "compile", "upload", "schedule"}
    assert {"quantize", "run", "schedule"} <= set(kinds["--model"])
    assert {"run", "schedule", "watch"} <= set(kinds["--publish-to"])
    assert not {"--source", "--destination"} & set(kinds)
