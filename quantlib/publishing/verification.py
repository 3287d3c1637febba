"""Verifies a published checkpoint byte by byte, as promotion and ``quantlib verify`` ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from quantlib.errors import InvalidInputError, Problem, VerificationError
from quantlib.publishing.published import (
    MAX_TEXT_BYTES,
    Published,
    manifest_bytes,
    serialized,
)
from quantlib.publishing.receipts import check_receipts
from quantlib.publishing.signing import (
    SignatureError,
    Trusted,
    require_checkable,
    verify_signature,
)
from quantlib.report.manifest import (
    MANIFEST_NAME,
    RECEIPTS_NAME,
    SIGNATURE_NAME,
    Manifest,
    checkpoint_files,
    difference_problems,
    figures_of,
    naming_problems,
    parse_manifest,
    require_in_folder,
)
from quantlib.report.model import Report
from quantlib.report.provenance import PROVENANCE_NAME, read_subjects, subjects_of
from quantlib.runtime.progress import Advance
from quantlib.serving.vllm_config import VLLM_CONFIG_NAME, parse_vllm_config
from quantlib.store import FileRecord, Store
from quantlib.store.transaction import difference


@dataclass(frozen=True)
class Policy:
    """What a published checkpoint must be, besides whole and passed by the gate.

    Attributes:
        trusted: Whose signature it must carry; None to take it without looking at signatures.
        require_signature: Refuse to verify without ``trusted``.
        digest: The checkpoint that it must be, for a copy whose folder is not named by it.
    """

    trusted: Trusted | None = None
    require_signature: bool = False
    digest: str | None = None


@dataclass(frozen=True)
class Verified:
    """A published checkpoint that is what it claims to be.

    Attributes:
        address: Where it is.
        manifest: What it holds.
        report: What it was judged by.
        vllm_version: The version of vLLM that judged it; None where another engine did.
        serve: The arguments of vLLM that serve it well, from ``vllm_config.json``.
        signed: Whether it carries a signature, checked or not.
        signer: Whose signature was checked; None where none was.
    """

    address: str
    manifest: Manifest
    report: Report
    vllm_version: str | None
    serve: dict[str, Any]
    signed: bool
    signer: str | None

    @property
    def digest(self) -> str:
        """The checkpoint's, as ``sha256:`` and 64 digits."""
        return self.manifest.checkpoint


def verify_for_promotion(
    published: Published,
    policy: Policy,
    advance: Advance | None = None,
    copy: Store | None = None,
) -> Verified:
    """Reads and hashes every file of a published checkpoint, and checks all that it says of itself.

    Args:
        published: Where it is.
        policy: What it must be.
        advance: Called with the number of bytes that were hashed since the last call.
        copy: Gets the very bytes that are hashed, each file under its name, the manifest and the
            signature too. It holds whatever was read where an error is raised.

    Returns:
        What was verified.

    Raises:
        VerificationError: With everything that is wrong with it.
        InvalidInputError: The policy cannot be applied: a key cannot be read, or is missing.
        StoreError: The place cannot be read.
        QuantlibError: Sigstore's servers cannot be reached.
    """
    _require_applicable(policy)
    where = f"{published.address}/{MANIFEST_NAME}"
    try:
        # Everything is checked against these bytes, whatever another writer does meanwhile.
        data = manifest_bytes(published)
        manifest = parse_manifest(data, where)
        if copy is not None:
            require_in_folder(published.address, manifest)
        measured = published.measure(manifest, serialized(advance), copy)
    except InvalidInputError as error:
        raise VerificationError(error.problems) from None
    problems = naming_problems(published.address, published.promised, manifest, policy.digest)
    problems += difference_problems(manifest, measured)
    if manifest.gate.outcome != "passed":
        reason = f"its checkpoint did not pass the gate: {manifest.gate.reason}"
        problems.append(Problem(where, reason))
    signature = published.read(SIGNATURE_NAME)
    if copy is not None:
        for name, content in ((MANIFEST_NAME, data), (SIGNATURE_NAME, signature)):
            if content is not None:
                copy.put_bytes(content, name)
    read = partial(_read, published, manifest)
    report, serve, signer = None, {}, None
    with _collected(problems):
        report = _check_report(read(manifest.report), manifest)
        receipts = read(RECEIPTS_NAME)
        check_receipts(receipts.content, receipts.where, manifest, report)
    with _collected(problems):
        _check_provenance(read(PROVENANCE_NAME), manifest)
    with _collected(problems):
        file = read(VLLM_CONFIG_NAME)
        serve = parse_vllm_config(file.content, file.where).arguments()
    with _collected(problems):
        signer = _check_signature(published.address, data, policy.trusted, signature)
    if problems or report is None:
        raise VerificationError(problems)
    vllm_version = _vllm_version(report)
    return Verified(
        published.address, manifest, report, vllm_version, serve, signature is not None, signer
    )


def _require_applicable(policy: Policy) -> None:
    if policy.trusted is not None:
        require_checkable(policy.trusted)
    elif policy.require_signature:
        raise InvalidInputError.one(
            "signature",
            "is required, and there is nothing to check one with",
            "give --public-key, or --identity and --issuer",
        )


@contextmanager
def _collected(problems: list[Problem]) -> Iterator[None]:
    """Notes what one check finds, and goes on to the next."""
    try:
        yield
    except InvalidInputError as error:
        problems += [problem for problem in error.problems if problem not in problems]


@dataclass(frozen=True)
class _File:
    """A small file of the folder."""

    where: str
    content: bytes


def _read(published: Published, manifest: Manifest, name: str) -> _File:
    where = f"{published.address}/{name}"
    if name not in manifest.files:
        raise InvalidInputError.one(where, "is not in the manifest")
    if (size := manifest.files[name].bytes) > MAX_TEXT_BYTES:
        raise InvalidInputError.one(where, f"holds {size} bytes: too many for such a file")
    content = published.read(name)
    if content is None:
        raise InvalidInputError.one(where, "there is no such file")
    found = FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    if what := difference(found, manifest.files[name], "manifest"):
        raise InvalidInputError.one(where, what)
    return _File(where, content)


def _check_report(file: _File, manifest: Manifest) -> Report:
    """Compares the report with the manifest."""
    report = Report.from_json(file.content, file.where)
    judged = report.evaluation
    same = (
        report.verdict == manifest.gate
        and report.model.name == manifest.name
        and report.provenance.checkpoint_digest == manifest.checkpoint
        and judged is not None
        and figures_of(judged) == manifest.figures
    )
    if not same:
        raise InvalidInputError.one(
            file.where, "tells another checkpoint, verdict or figures than the manifest"
        )
    return report


def _vllm_version(report: Report) -> str | None:
    """The version of vLLM that judged."""
    judged = report.evaluation
    return judged.engine_version if judged and judged.engine == "vllm" else None


def _check_provenance(file: _File, manifest: Manifest) -> None:
    if read_subjects(file.content, file.where) != subjects_of(checkpoint_files(manifest.files)):
        raise InvalidInputError.one(file.where, "is of other files than the manifest's")


def _check_signature(
    address: str, manifest: bytes, trusted: Trusted | None, signature: bytes | None
) -> str | None:
    """Who signed; None where nobody asks."""
    if trusted is None:
        return None
    where = f"{address}/{SIGNATURE_NAME}"
    if signature is None:
        raise InvalidInputError.one(where, "there is no such file: the checkpoint is not signed")
    try:
        return verify_signature(manifest, signature, trusted)
    except SignatureError as error:
        raise InvalidInputError.one(where, str(error)) from None
