"""Whether a run that is elsewhere can reach all that it names."""

from __future__ import annotations

from quantlib.errors import InvalidInputError, Problem
from quantlib.publishing.opening import open_destination
from quantlib.recipe import AskedRecipe
from quantlib.tasks.items import given_items
from quantlib.text.addresses import LocalText, Text, parse_text
from quantlib.text.wanted import wanted_texts

_ON_THIS_MACHINE = (
    "is on this machine",
    "put it in object storage and give s3://bucket/prefix, or name it "
    "hf://datasets/org/name@revision/path",
)


def require_reachable(recipe: AskedRecipe, model: str, store: str, publish_to: str) -> None:
    """Checks that a run elsewhere does not need files or folders of this machine.

    Raises:
        InvalidInputError: It does.
    """
    addresses = {
        "--model": model or recipe.model or "",
        "--store": store,
        "--publish-to": publish_to or recipe.publish.destination or "",
    }
    problems = [
        Problem(f"{option} {address}", "is a folder of this machine", "give s3://bucket/prefix")
        for option, address in addresses.items()
        if address and ("://" not in address or address.startswith("file://"))
    ]
    try:
        open_destination(addresses["--publish-to"], recipe.publish.base_image or "")
    except InvalidInputError as error:
        problems += error.problems
    for purpose, section in wanted_texts(recipe).items():
        text = Text.of(section)
        if isinstance(parse_text(text), LocalText):
            part = "validation" if purpose == "evaluation" else purpose
            problems.append(Problem(f"{part}.dataset {text.dataset}", *_ON_THIS_MACHINE))
    for task, text in given_items(recipe).items():
        if isinstance(parse_text(text), LocalText):
            problems.append(Problem(f"tasks.{task}: dataset {text.dataset}", *_ON_THIS_MACHINE))
    if problems:
        raise InvalidInputError(problems)
