"""The templates that pages and cards are made of."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from quantlib.report.text import FILTERS


@cache
def environment(*, autoescape: bool) -> Environment:
    """Loads templates of this package.

    Args:
        autoescape: Whether what is filled in is escaped for HTML.
    """
    made = Environment(
        loader=PackageLoader("quantlib.report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(FILTERS)
    return made
