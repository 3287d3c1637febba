"""Options that say whose signature a published checkpoint must carry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from quantlib.errors import InvalidInputError

if TYPE_CHECKING:
    from quantlib.publishing.signing import Trusted
    from quantlib.publishing.verification import Policy

Command = TypeVar("Command", bound=Callable[..., Any])
_OPTIONS = (
    click.option(
        "--public-key",
        type=click.Path(path_type=Path),
        envvar="QUANTLIB_PUBLIC_KEY",
        show_envvar=True,
        help="Require a signature by the private key that belongs to this one, in PEM.",
    ),
    click.option("--identity", help="Require a keyless signature of this identity."),
    click.option("--issuer", help="The OIDC issuer that knows the identity."),
    click.option(
        "--require-signature",
        is_flag=True,
        help="Fail where neither a public key nor an identity is given.",
    ),
)


def signature_options(command: Command) -> Command:
    """Adds the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def policy_of(
    public_key: Path | None, identity: str | None, issuer: str | None, require_signature: bool
) -> Policy:
    """What the options ask for.

    Raises:
        InvalidInputError: They make no sense together.
    """
    from quantlib.publishing.verification import Policy

    return Policy(_trusted(public_key, identity, issuer), require_signature)


def _trusted(public_key: Path | None, identity: str | None, issuer: str | None) -> Trusted | None:
    from quantlib.publishing.signing import Identity, PublicKey

    if bool(identity) != bool(issuer):
        raise InvalidInputError.one("--identity and --issuer", "belong together", "give both")
    if identity and issuer:
        if public_key is not None:
            raise InvalidInputError.one(
                "--public-key and --identity", "exclude each other", "give one of them"
            )
        return Identity(identity, issuer)
    return PublicKey(public_key) if public_key else None
