"""``quantlib sign``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from quantlib.errors import InvalidInputError

_EXAMPLES = """\b
Examples:
  openssl ecparam -name prime256v1 -genkey -noout -out release.pem
  openssl ec -in release.pem -pubout -out release.pub
  quantlib sign ./published/llama/4f2a... --store ./store --recipe recipe.yaml --key release.pem
  quantlib verify ./published/llama/4f2a... --public-key release.pub
"""


@click.command(epilog=_EXAMPLES)
@click.argument("published")
@click.option("--store", required=True, help="Where the steps' files and receipts are.")
@click.option(
    "--recipe",
    "--config",
    "config",
    required=True,
    type=click.Path(path_type=Path),
    help="The recipe of the checkpoint.",
)
@click.option(
    "--model",
    default="",
    help="Where the model came from: names the checkpoint as `quantlib run` did, where the recipe "
    "does not.",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    envvar="QUANTLIB_SIGNING_KEY",
    show_envvar=True,
    help="Elliptic curve private key in PEM; its password is read from QUANTLIB_SIGNING_PASSWORD.",
)
@click.option(
    "--keyless",
    is_flag=True,
    help="Sign with the workload's OIDC identity, through Sigstore; the token is the file at "
    "QUANTLIB_SIGNING_TOKEN or what the surroundings give.",
)
@click.option("--replace", is_flag=True, help="Replace a signature that somebody else made.")
def sign(
    published: str,
    store: str,
    config: Path,
    model: str,
    key: Path | None,
    keyless: bool,
    replace: bool,
) -> None:
    """Sign the published checkpoint PUBLISHED: a folder, s3://…, oci://… or hf://….

    What lies there is not signed: it is published again, from the receipts in the store, and
    model.sig covers the sha256 of every file of that. What carries the signer's own signature, and
    says the same, is left as it is. Of an image or a commit the signed one is another one: its
    address is printed.
    """
    from quantlib.checks.recipe import load_recipe
    from quantlib.publishing.keys import PASSWORD_VARIABLE
    from quantlib.publishing.reading import open_published
    from quantlib.publishing.signing import TOKEN_VARIABLE, KeylessSigner, KeySigner
    from quantlib.sources.naming import named
    from quantlib.steps.publish import sign_published
    from quantlib.store import open_store

    if keyless:
        token = os.environ.get(TOKEN_VARIABLE)
        signer: KeySigner | KeylessSigner = KeylessSigner(Path(token) if token else None)
    elif key is not None:
        signer = KeySigner(key, os.environ.get(PASSWORD_VARIABLE) or None)
    else:
        raise InvalidInputError.one("signer", "is missing", "give --key or --keyless")
    place = open_published(published)
    recipe = named(load_recipe(config), model)
    address, is_new = sign_published(open_store(store), recipe, place, signer, replace)
    click.echo("signed" if is_new else "is signed already")
    if address != place.address:
        click.echo(address)
