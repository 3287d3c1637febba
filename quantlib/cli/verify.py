"""``quantlib verify``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantlib.cli.result_options import print_json, progress, result_options
from quantlib.cli.signature_options import policy_of, signature_options
from quantlib.errors import InvalidInputError, VerificationError

if TYPE_CHECKING:
    from quantlib.publishing.verification import Verified

_EXAMPLES = """\b
Examples:
  quantlib verify ./published/llama/4f2a...
  quantlib verify s3://bucket/published/llama/4f2a... --public-key release.pub
  quantlib verify oci://registry.example.org/team/llama@sha256:0b1c... --public-key release.pub
  quantlib verify hf://my-org/llama-w4 --public-key release.pub
  quantlib verify /mnt/models --digest sha256:4f2a... --public-key release.pub
  quantlib verify ./published/llama/4f2a... --identity release@example.org \\
    --issuer https://accounts.example.org
"""


@click.command(epilog=_EXAMPLES)
@click.argument("published")
@click.option(
    "--digest",
    help="The checkpoint that it must be: sha256:… For a copy whose folder is called otherwise.",
)
@signature_options
@result_options
def verify(
    published: str,
    digest: str | None,
    public_key: Path | None,
    identity: str | None,
    issuer: str | None,
    require_signature: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Verify the published checkpoint PUBLISHED: a folder, s3://…, oci://… or hf://….

    Reads and hashes every file and compares it with the manifest, and the manifest with the
    folder's name, the report, the provenance and the signature. All faults are printed, with exit
    code 1; 2 means that the options make no sense. What a tag or a branch names is looked up once,
    and printed by its digest or commit.
    """
    from quantlib.publishing.published import manifest_of
    from quantlib.publishing.reading import open_published
    from quantlib.publishing.verification import verify_for_promotion
    from quantlib.runtime.progress import progress_bar

    if digest is not None and not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        raise InvalidInputError.one("--digest", f"{digest} is no digest", "give sha256:… whole")
    policy = replace(policy_of(public_key, identity, issuer, require_signature), digest=digest)
    place = open_published(published)
    try:
        try:
            total = sum(record.bytes for record in manifest_of(place).files.values())
        except InvalidInputError as error:
            raise VerificationError(error.problems) from None
        with progress(quiet=quiet), progress_bar("Verifying", total, "bytes") as advance:
            verified = verify_for_promotion(place, policy, advance)
    except VerificationError as error:
        if as_json:
            problems = [str(problem) for problem in error.problems]
            print_json("verify", {"verified": False, "problems": problems})
        raise
    if as_json:
        print_json("verify", {"verified": True, "problems": [], **_result(verified)})
    else:
        for line in _lines(verified):
            click.echo(line)


def _result(verified: Verified) -> dict[str, Any]:
    from quantlib.report.text import figures_of

    manifest, report = verified.manifest, verified.report
    return {
        "address": verified.address,
        "checkpoint": verified.digest,
        "model": manifest.name,
        "release": manifest.release,
        "published_at": manifest.published_at.isoformat(),
        "recipe": manifest.recipe,
        "files": len(manifest.files),
        "verdict": manifest.gate.outcome,
        "reason": manifest.gate.reason,
        "figures": figures_of(report.evaluation) if report.evaluation else None,
        "signed": verified.signed,
        "signer": verified.signer,
    }


def _lines(verified: Verified) -> Iterator[str]:
    from quantlib.report.provenance import source_uri

    # Not a table of rich: it would cut digests at the width of the terminal.
    manifest, figures = verified.manifest, verified.manifest.figures
    if verified.signer is not None:
        signature = f"by {verified.signer}"
    else:
        signature = "not checked: no key was given" if verified.signed else "none"
    source = source_uri(manifest.source) or "from a local folder or file"
    for name, value in {
        "address": verified.address,
        "checkpoint": verified.digest,
        "model": f"{manifest.name}, {source}",
        "release": f"{manifest.release}, published {manifest.published_at:%Y-%m-%d %H:%M:%S} UTC",
        "recipe": manifest.recipe,
        "files": f"{len(manifest.files)} as the manifest says",
        "gate": f"{manifest.gate.outcome}: {manifest.gate.reason}",
        "perplexity": f"{figures.perplexity_quantized:.4g}, original "
        f"{figures.perplexity_original:.4g}",
        "KL divergence": f"{figures.kl_mean:.4g} ± {figures.kl_standard_error:.2g}",
        "top-1 agreement": f"{figures.top1_agreement:.4g}",
        "judged by": figures.engine,
        "signature": signature,
    }.items():
        yield f"{name:<16} {value}"
