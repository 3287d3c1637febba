"""``quantlib unpublish``."""

from __future__ import annotations

import click

_EXAMPLES = """\b
Examples:
  quantlib unpublish ./published/llama/4f2a...
  quantlib unpublish s3://bucket/published/llama/4f2a...
  quantlib unpublish oci://registry.example.org/team/llama@sha256:0b1c...
"""


@click.command(epilog=_EXAMPLES)
@click.argument("published")
def unpublish(published: str) -> None:
    """Take back the published checkpoint PUBLISHED: a folder, s3://… or oci://….

    Removes its manifest, its files, and the entry by which `quantlib watch` would call it up to
    date; of an image, the index and the manifests, with all tags. What serves it now goes on until
    its pods start anew. A commit of hf:// cannot be taken back: its repository is removed there.
    """
    from quantlib.publishing.unpublish import unpublish as take_back

    address, strangers = take_back(published)
    click.echo(f"unpublished {address}")
    for stranger in strangers:
        click.echo(f"left where it is, for it is no part of the checkpoint: {stranger}")
