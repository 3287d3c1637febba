"""Promotion by a commit: the service's patch on a branch, for people to review and merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from quantlib.errors import InvalidInputError, Problem, QuantlibError
from quantlib.promotion.checks import Allowances, git_and_cluster, problems_of
from quantlib.promotion.description import arguments_for
from quantlib.promotion.git import Clone, clone_of, without_password
from quantlib.promotion.overlay import Overlay, find_overlay
from quantlib.promotion.published import Published
from quantlib.promotion.state import State, successor
from quantlib.promotion.verified_start import other_digest_problems


@dataclass(frozen=True)
class Target:
    """The service in a repository.

    Attributes:
        repository: A URL or a path.
        overlay: Path of the overlay within it.
        base: The branch that the change is for; None for the repository's own choice.
        service: Name of the service.
        namespace: Of the service.
    """

    repository: str
    overlay: str
    base: str | None
    service: str
    namespace: str


@dataclass(frozen=True)
class Proposal:
    """What came of it.

    Attributes:
        branch: That holds the change; None where nothing had to be changed.
        message: What was done, in a sentence.
    """

    branch: str | None
    message: str


def propose(
    published: Published,
    storage_uri: str,
    target: Target,
    allowances: Allowances,
    in_cluster: Callable[[], State] | None = None,
) -> Proposal:
    """Pushes a branch on which the overlay serves a checkpoint.

    Args:
        published: The checkpoint.
        storage_uri: Where the service finds it.
        target: The service.
        allowances: What is let pass.
        in_cluster: Asked what the cluster serves, which the message compares with what git says;
            None to ask no cluster.

    Raises:
        InvalidInputError: With everything that speaks against it.
        QuantlibError: The remote cannot be written, or somebody pushed to the branch meanwhile.
    """
    with clone_of(target.repository, target.base) as clone:
        overlay = _overlay(clone, target)
        difference = in_cluster and git_and_cluster(overlay.current(), in_cluster())
        proposal = _proposed(published, storage_uri, target, allowances, clone, overlay)
    if difference:
        return replace(proposal, message=f"{proposal.message}\n{difference}")
    return proposal


def _proposed(
    published: Published,
    storage_uri: str,
    target: Target,
    allowances: Allowances,
    clone: Clone,
    overlay: Overlay,
) -> Proposal:
    branch = f"promote/{target.service}-{published.short_digest}"
    current = overlay.current()
    if current.digest == published.digest and current.uri == storage_uri:
        return Proposal(None, f"{target.service} serves {published.digest} already")
    problems = problems_of(published, current, overlay.runtime, allowances)
    problems += other_digest_problems(overlay.kind.name, overlay.served, published.digest)
    if problems:
        raise InvalidInputError(problems)
    # A branch that was merged, and reverted since, would propose nothing: it goes on from here.
    if clone.remote_branch(branch) and not clone.holds(f"origin/{branch}"):
        clone.git("checkout", "--quiet", "-B", branch, f"origin/{branch}")
        overlay = _overlay(clone, target)
        if (there := overlay.current()).digest == published.digest and there.uri == storage_uri:
            return Proposal(branch, f"the branch {branch} proposes {published.digest} already")
    else:
        clone.git("checkout", "--quiet", "--no-track", "-B", branch)
    arguments = arguments_for(published, overlay.kind, storage_uri)
    wanted = successor(current, published, storage_uri, arguments)
    overlay.lay(wanted)
    laid = _overlay(clone, target).current()
    if (laid.uri, laid.arguments) != (wanted.uri, wanted.arguments):
        raise InvalidInputError.one(
            overlay.patch_path.name,
            "a later patch of the overlay changes what it serves",
            "name this one last in patches",
        )
    _commit(clone, commit_message(published, target.service, current))
    clone.push(branch)
    return Proposal(branch, f"pushed {branch} to {without_password(clone.url)}")


def _overlay(clone: Clone, target: Target) -> Overlay:
    return find_overlay(clone.folder, target.overlay, target.service, target.namespace)


def _commit(clone: Clone, message: str) -> None:
    clone.git("add", "--all")
    try:
        clone.git("commit", "--quiet", "--message", message)
    except QuantlibError as error:
        if "Please tell me who you are" not in str(error):
            raise
        raise InvalidInputError(
            [
                Problem(
                    "git",
                    "does not know who commits",
                    "set GIT_AUTHOR_NAME, GIT_AUTHOR_EMAIL, GIT_COMMITTER_NAME and "
                    "GIT_COMMITTER_EMAIL, or git's user.name and user.email",
                )
            ]
        ) from None


def commit_message(published: Published, service: str, current: State) -> str:
    """The message of the commit: what is promoted, and the gate's table."""
    manifest, report = published.manifest, published.report
    lines = [
        f"Serve {manifest.name} {published.short_digest} as {service}",
        "",
        f"Gate: {manifest.gate.outcome}: {manifest.gate.reason}",
        "",
    ]
    if report.evaluation is not None:
        lines.append(f"{'check':<22} {'value':>10} {'limit':>10}")
        lines += [
            f"{check.name:<22} {check.value:>10.4f} {check.limit:>10.4f}"
            for check in report.evaluation.gate.checks
        ]
        lines.append("")
    figures = manifest.figures
    lines += [
        f"Perplexity {figures.perplexity_original:.4f} -> {figures.perplexity_quantized:.4f}, "
        f"validated with {figures.engine}.",
        "",
        f"Digest: {published.digest}",
        f"Report: {published.report_address}",
        f"Replaces: {current.uri or 'nothing'}",
    ]
    return "\n".join(lines)
