"""``quantlib rollback``."""

from __future__ import annotations

import click

from quantlib.cli.promote import SECONDS, needs_kubernetes

_EXAMPLES = """\b
Examples:
  quantlib rollback --service smollm2 --namespace quantlib-serving
"""


@click.command(epilog=_EXAMPLES)
@click.option("--service", required=True, help="Name of the object that serves.")
@click.option("--namespace", required=True, help="Namespace of the service.")
@click.option("--context", help="Of the kubeconfig. Default: the current one.")
@click.option(
    "--timeout",
    type=SECONDS,
    default=1800.0,
    show_default=True,
    help="Seconds that the service gets to be ready.",
)
def rollback(service: str, namespace: str, context: str | None, timeout: float) -> None:
    """Restore what a service served before `quantlib promote --direct`.

    It also ends a promotion whose process is gone. Of a promotion by a commit, revert the commit.
    """
    with needs_kubernetes():
        from quantlib.promotion.cluster import find_service
        from quantlib.promotion.restoring import roll_back
        from quantlib.promotion.rollout import Rollout
    found = find_service(namespace, service, context)
    click.echo(roll_back(found, Rollout(timeout=timeout), click.echo))
