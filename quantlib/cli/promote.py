"""``quantlib promote``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from quantlib.cli.signature_options import policy_of, signature_options
from quantlib.errors import InvalidInputError
from quantlib.runtime.distribution import pip_install

if TYPE_CHECKING:
    from quantlib.promotion.state import State

_EXAMPLES = """\b
Examples:
  quantlib promote s3://models/SmolLM2/93a0... --service smollm2 --namespace quantlib-serving \\
    --repo git@git.example.org:platform/serving.git --overlay overlays/production
  quantlib promote oci://registry.example.org/team/smollm2:stable --service smollm2 \\
    --namespace quantlib-serving --repo . --overlay overlays/production
  quantlib promote s3://models/SmolLM2/93a0... --service smollm2 --namespace quantlib-serving \\
    --direct --canary 10,50 --canary-url http://smollm2-canary.example.org
"""


SECONDS = click.FloatRange(min=0, min_open=True)


class _Percents(click.ParamType):
    """Shares of the traffic that rise, such as ``0,10,50``."""

    name = "percents"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        """Reads the numbers."""
        try:
            percents = tuple(int(word) for word in str(value).split(","))
        except ValueError:
            percents = ()
        if not percents or sorted({*percents}) != [*percents] or not set(percents) < {*range(100)}:
            self.fail(f"{value} is not rising numbers from 0 to 99, such as 0,10,50")
        return percents


def _url(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    parts = urlsplit(value or "")
    if value is not None and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise click.BadParameter(f"{value!r} is no address, such as http://127.0.0.1:8000")
    return value


@click.command(epilog=_EXAMPLES)
@click.argument("published")
@click.option("--service", required=True, help="Name of the object that serves.")
@click.option("--namespace", required=True, help="Namespace of the service.")
@click.option("--repo", help="Repository of the manifests: a URL or a path.")
@click.option("--overlay", help="The kustomize overlay of the service, as a path within it.")
@click.option("--base", help="Branch that the change is for. Default: the repository's own.")
@click.option(
    "--compare-with-cluster",
    is_flag=True,
    help="With --repo: say where the cluster of the kubeconfig serves other than git says.",
)
@click.option(
    "--storage-uri",
    help="What is published as the service sees it. Default: its own address.",
)
@click.option(
    "--runtime-version",
    help="vLLM's version where it is served. Default: the tag of the service's or runtime's image.",
)
@click.option(
    "--allow-runtime-drift",
    is_flag=True,
    help="Serve with another vLLM than the one that validated the checkpoint.",
)
@click.option(
    "--allow-downgrade",
    is_flag=True,
    help="Serve a release of a lower number, or an earlier time, than what serves now.",
)
@click.option(
    "--model",
    help="Name of the model that the service is for. Default: its annotation quantlib.io/model.",
)
@click.option(
    "--allow-other-model", is_flag=True, help="Serve a checkpoint of another model than that."
)
@click.option("--direct", is_flag=True, help="Change the cluster, not a repository.")
@click.option("--context", help="Of the kubeconfig, with --direct. Default: the current one.")
@click.option(
    "--canary",
    type=_Percents(),
    default=None,
    help="With --direct: percents of the traffic, one after the other, such as 0,10,50.",
)
@click.option(
    "--route",
    help="With --canary: an HTTPRoute to the service, which gives the canary its share.",
)
@click.option(
    "--in-place",
    is_flag=True,
    help="With --direct: test the new checkpoint when it serves, not beside what serves before.",
)
@click.option(
    "--url",
    callback=_url,
    help="With --direct: where it answers. Default: what its status says, or its Service, asked "
    "through the API server.",
)
@click.option(
    "--canary-url",
    callback=_url,
    help="With --direct: where the new checkpoint alone answers before it gets all traffic. "
    "Default: the canary's Service, asked through the API server.",
)
@click.option(
    "--verify-on-start/--no-verify-on-start",
    default=None,
    help="With --direct: pods verify what they fetched before vLLM starts. Default: where the "
    "cluster has manifests/components/verified-storage.",
)
@click.option(
    "--allow-managed",
    is_flag=True,
    help="With --direct: change a service that Argo CD, Flux or Helm keep, and put back.",
)
@click.option(
    "--no-smoke-test", is_flag=True, help="With --direct: being ready is enough for each step."
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=0.9,
    show_default=True,
    help="Of the smoke test: share of the report's probes that are answered as in the report.",
)
@click.option(
    "--max-seconds",
    type=SECONDS,
    default=60.0,
    show_default=True,
    help="Of the smoke test: for each answer.",
)
@click.option(
    "--timeout",
    type=SECONDS,
    default=1800.0,
    show_default=True,
    help="With --direct: seconds that each step gets to be ready.",
)
@signature_options
def promote(
    published: str,
    service: str,
    namespace: str,
    repo: str | None,
    overlay: str | None,
    base: str | None,
    compare_with_cluster: bool,
    storage_uri: str | None,
    runtime_version: str | None,
    allow_runtime_drift: bool,
    allow_downgrade: bool,
    model: str | None,
    allow_other_model: bool,
    direct: bool,
    context: str | None,
    canary: tuple[int, ...] | None,
    route: str | None,
    in_place: bool,
    url: str | None,
    canary_url: str | None,
    verify_on_start: bool | None,
    allow_managed: bool,
    no_smoke_test: bool,
    min_agreement: float,
    max_seconds: float,
    timeout: float,
    **signature: Any,
) -> None:
    """Let a service serve the checkpoint PUBLISHED: a folder, s3://…, oci://… or hf://….

    It is verified first, and served by its digest or commit. The change is a patch in a kustomize
    overlay, on a branch of its own that is pushed to the repository: whoever reviews and merges it
    promotes the checkpoint.

    With --direct the service itself is changed, step by step. Each step has to get ready and to
    answer as the report says; where one does not, or on Ctrl-C, what was served before is restored.
    """
    from quantlib.promotion.checks import Allowances, check_published
    from quantlib.promotion.checks import storage_uri as address_of

    _require_mode(
        direct,
        {
            "--repo": repo,
            "--overlay": overlay,
            "--base": base,
            "--compare-with-cluster": compare_with_cluster,
        },
        {
            "--context": context,
            "--canary": canary,
            "--route": route,
            "--in-place": in_place,
            "--url": url,
            "--canary-url": canary_url,
            "--no-smoke-test": no_smoke_test,
            "--verify-on-start": verify_on_start is not None,
            "--allow-managed": allow_managed,
        },
    )
    if in_place and canary:
        raise InvalidInputError.one("--in-place", "and --canary exclude each other")
    checked = check_published(published, policy_of(**signature))
    uri = address_of(checked, storage_uri)
    allowances = Allowances(
        runtime_version,
        allow_runtime_drift,
        allow_downgrade,
        model,
        allow_other_model,
        allow_managed,
    )
    if not direct:
        from quantlib.promotion.git import clone_of
        from quantlib.promotion.gitops import git_and_cluster, propose
        from quantlib.promotion.overlay import find_overlay

        with clone_of(repo or "", base) as clone:
            find = partial(find_overlay, clone.folder, overlay or "", service, namespace)
            note = None
            if compare_with_cluster:
                note = git_and_cluster(find().current(), _served(namespace, service))
            click.echo(propose(checked, uri, clone, find, allowances))
        if note:
            click.echo(note)
        return
    from quantlib.promotion.smoke import expected_of

    with needs_kubernetes():
        from quantlib.promotion.cluster import find_service
        from quantlib.promotion.direct import promote_directly
        from quantlib.promotion.rollout import Rollout
    expected = None if no_smoke_test else expected_of(checked, min_agreement, max_seconds)
    found = find_service(namespace, service, context)
    rollout = Rollout(canary or (), route, in_place, url, canary_url, verify_on_start, timeout)
    click.echo(promote_directly(checked, uri, found, rollout, allowances, expected, click.echo))


def _served(namespace: str, service: str) -> State:
    """What a service of the cluster serves."""
    with needs_kubernetes("--compare-with-cluster"):
        from quantlib.promotion.cluster import find_service
    found = find_service(namespace, service, None)
    return found.kind.state(found.get())


@contextmanager
def needs_kubernetes(option: str = "--direct") -> Iterator[None]:
    """Says what to install where the client for Kubernetes is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "kubernetes":
            raise
        raise InvalidInputError.one(
            option, "kubernetes is not installed", pip_install("promotion")
        ) from None


def _require_mode(
    direct: bool, of_repository: Mapping[str, Any], of_cluster: Mapping[str, Any]
) -> None:
    if direct and any(of_repository.values()):
        raise InvalidInputError.one("--direct", "changes no repository", "give it or --repo")
    if not direct and not (of_repository["--repo"] and of_repository["--overlay"]):
        raise InvalidInputError.one(
            "quantlib promote", "needs --repo and --overlay", "or --direct, to change the cluster"
        )
    for option, given in of_cluster.items():
        if given and not direct:
            raise InvalidInputError.one(option, "works with --direct only")
