"""Promotion by a commit: the service's patch on a branch, for people to review and merge."""

from __future__ import annotations

from collections.abc import Callable

from quantlib.errors import InvalidInputError
from quantlib.promotion.checks import Allowances, problems_of
from quantlib.promotion.git import Clone, without_password
from quantlib.promotion.overlay import Overlay
from quantlib.promotion.state import State, report_address, short, successor
from quantlib.promotion.verified_start import other_digest_problems
from quantlib.publishing.verification import Verified


def propose(
    published: Verified,
    storage_uri: str,
    clone: Clone,
    find: Callable[[], Overlay],
    allowances: Allowances,
) -> str:
    """Pushes a branch on which an overlay serves a checkpoint, unless it does already.

    ``find`` reads the overlay in the clone.

    Returns:
        What was done, in a sentence.

    Raises:
        InvalidInputError: With everything that speaks against it.
        QuantlibError: The remote cannot be written, or somebody pushed to the branch meanwhile.
    """
    overlay, digest = find(), published.digest
    current, service = overlay.current(), overlay.base["metadata"]["name"]
    if current.serves(published, storage_uri):
        return f"{service} serves {digest} already"
    problems = [
        *problems_of(published, current, overlay.runtime, allowances),
        *other_digest_problems(overlay.served, digest),
    ]
    if problems:
        raise InvalidInputError(problems)
    branch = f"promote/{service}-{short(digest)}"
    # A branch that was merged, and reverted since, would propose nothing: it goes on from here.
    if clone.has_more(branch):
        clone.git("checkout", "--quiet", "-B", branch, f"origin/{branch}")
        overlay = find()
        if overlay.current().serves(published, storage_uri):
            return f"the branch {branch} proposes {digest} already"
    else:
        clone.git("checkout", "--quiet", "--no-track", "-B", branch)
    wanted = successor(current, published, storage_uri, overlay.kind.name)
    overlay.write_patch(wanted)
    laid = find().current()
    if (laid.uri, laid.arguments) != (wanted.uri, wanted.arguments):
        raise InvalidInputError.one(
            overlay.patch_path.name,
            "a later patch of the overlay changes what it serves",
            "name this one last in patches",
        )
    clone.commit(_message(published, service, current))
    clone.push(branch)
    return f"pushed {branch} to {without_password(clone.url)}"


def git_and_cluster(in_git: State, in_cluster: State) -> str | None:
    """In a line how the two differ in what they serve; None where they do not."""
    if (in_git.uri, in_git.digest) == (in_cluster.uri, in_cluster.digest):
        return None
    return (
        f"note: git says {in_git.uri or 'nothing'}, and the cluster serves "
        f"{in_cluster.uri or 'nothing'}: it was changed directly, or has not taken over git yet"
    )


def _message(published: Verified, service: str, current: State) -> str:
    """The message of the commit: what is promoted, and the gate's table."""
    manifest, evaluation = published.manifest, published.report.evaluation
    figures = manifest.figures
    lines = [
        f"Serve {manifest.name} {short(published.digest)} as {service}",
        "",
        f"Gate: {manifest.gate.outcome}: {manifest.gate.reason}",
        "",
    ]
    if evaluation is not None:
        lines.append(f"{'check':<22} {'value':>10} {'limit':>10}")
        lines += [
            f"{check.name:<22} {check.value:>10.4f} {check.limit:>10.4f}"
            for check in evaluation.gate.checks
        ]
        lines.append("")
    lines += [
        f"Perplexity {figures.perplexity_original:.4f} -> {figures.perplexity_quantized:.4f}, "
        f"validated with {figures.engine}.",
        "",
        f"Digest: {published.digest}",
        f"Report: {report_address(published)}",
        f"Replaces: {current.uri or 'nothing'}",
    ]
    return "\n".join(lines)
