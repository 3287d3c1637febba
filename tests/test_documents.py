"""Links lead somewhere, and code in the documents is what it says that it is."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from documents import DOCUMENTS, ROOT, blocks

from quantlib.checks.recipe import parse_recipe
from quantlib.cli import command_of
from quantlib.recipe import Recipe

NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")


def anchors(document: Path) -> set[str]:
    """The names that a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    document = ROOT / name
    broken = []
    for link in _LINK.findall(document.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def commands(name: str) -> list[str]:
    """The shell commands of a document, continued lines joined."""
    texts = [block.text for block in blocks(ROOT / name) if block.language in ("sh", "bash")]
    return [line for text in texts for line in text.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_ones_that_there_are(name: str) -> None:
    rules = re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    for line in commands(name):
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        if words[:1] == ["python"] and words[1].endswith(".py"):
            assert (ROOT / words[1]).exists(), line
        if words[:1] == ["quantlib"] and not words[1].startswith("-"):
            command = command_of(words[1])
            try:
                # Paths need not exist: what is tested is that the options do.
                command.make_context(words[1], words[2:], resilient_parsing=True)
            except click.UsageError as error:
                pytest.fail(f"{line}: {error}")


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_valid(name: str) -> None:
    for block in blocks(ROOT / name):
        if block.language == "yaml":
            data = yaml.safe_load(block.text)
            if set(data) <= set(Recipe.model_fields):
                parse_recipe(data, origin=name)


@pytest.mark.parametrize("name", NAMES)
def test_code_parses(name: str) -> None:
    for block in blocks(ROOT / name):
        if block.language == "python":
            compile(block.text, name, "exec")
        if block.language == "json":
            json.loads(block.text)


def test_no_document_is_empty_of_tests() -> None:
    assert len(NAMES) > 10
    assert sum(bool(commands(name)) for name in NAMES) >= 2
