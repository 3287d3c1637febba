"""``--num-ranges``: how many ranges of blocks, or as many as end soonest."""

from __future__ import annotations

import click


def range_count(text: str) -> int | None:
    """The number of ranges that an option asks for; None for ``auto``.

    Raises:
        click.BadParameter: It is neither.
    """
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise click.BadParameter(f"{text!r} is neither auto nor a number from 1 to 64")
    return int(text)
