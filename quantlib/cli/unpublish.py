"""``quantlib unpublish``."""

from __future__ import annotations

import click

_EXAMPLES = """\b
Examples:
  quantlib unpublish ./published/llama/4f2a...
  quantlib unpublish s3://bucket/published/llama/4f2a...
"""


@click.command(epilog=_EXAMPLES)
@click.argument("published")
def unpublish(published: str) -> None:
    """Take back the published checkpoint PUBLISHED: a folder, or s3://bucket/prefix.

    Removes its manifest, its files, and the entry by which `quantlib watch` would call it up to
    date. What serves it now goes on until its pods start anew.
    """
    from quantlib.publishing.unpublish import unpublish as take_back
    from quantlib.store import open_store

    store = open_store(published.rstrip("/"))
    strangers = take_back(store)
    click.echo(f"unpublished {store.address}")
    for address in strangers:
        click.echo(f"left where it is, for it is no part of the checkpoint: {address}")
