"""The manifest of a published checkpoint, and the check that a folder is what its manifest says.

The layout is described in docs/formats/published.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, field_validator

from quantlib.errors import InvalidInputError, Problem
from quantlib.report.model import HTML_NAME, JSON_NAME, Evaluation, Part, Report, Verdict
from quantlib.report.model_card import CARD_NAME
from quantlib.store.receipt import Digest, FileRecord, files_digest
from quantlib.store.transaction import hash_file

SCHEMA: Final = "quantlib/manifest/1"
MANIFEST_NAME = "manifest.json"
PROVENANCE_SCHEMA = "quantlib/provenance/1"
PROVENANCE_NAME = "provenance.json"
DESCRIPTIONS = frozenset({JSON_NAME, HTML_NAME, CARD_NAME, PROVENANCE_NAME})
"""Files of a published folder that are no part of the checkpoint."""


class Figures(Part):
    """What the gate judged, in numbers; see :class:`quantlib.report.model.Evaluation`."""

    perplexity_original: float
    perplexity_quantized: float
    kl_mean: float
    kl_standard_error: float
    top1_agreement: float
    engine: str


class Manifest(Part):
    """What a published folder holds. It is written last: a folder without it is not published.

    Attributes:
        name: Of the model.
        checkpoint: Digest of the checkpoint's files; its digits name the folder.
        files: Every file but the manifest, by path within the folder.
    """

    schema_: Annotated[Literal["quantlib/manifest/1"], Field(alias="schema")] = SCHEMA
    name: str
    checkpoint: Digest
    gate: Verdict
    figures: Figures
    report: str
    source: dict[str, Any]
    recipe: Digest
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _within_the_folder(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name or name == ".":
                raise ValueError(f"{name!r} is no plain path within the folder")
        return files

    def to_json(self) -> bytes:
        """The manifest as indented JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode() + b"\n"


def figures_of(evaluation: Evaluation) -> Figures:
    """The manifest's figures of an evaluation."""
    return Figures(
        perplexity_original=evaluation.original.perplexity,
        perplexity_quantized=evaluation.quantized.perplexity,
        kl_mean=evaluation.kl_mean,
        kl_standard_error=evaluation.kl_standard_error,
        top1_agreement=evaluation.top1_agreement,
        engine=f"{evaluation.engine} {evaluation.engine_version}",
    )


def provenance_of(report: Report) -> dict[str, Any]:
    """The content of ``provenance.json``: all that is needed to make the checkpoint again."""
    return {
        "schema": PROVENANCE_SCHEMA,
        "source": report.model.source,
        "recipe": report.recipe,
        "versions": report.versions,
        "evaluation_digest": report.evaluation.text.digest if report.evaluation else None,
        **report.provenance.model_dump(mode="json"),
    }


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a published folder.

    Raises:
        InvalidInputError: There is none, or it is no valid one.
    """
    path = folder / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInputError.one(
            str(path), f"cannot be read: {error.strerror}", "without it the folder is not published"
        ) from None
    except ValidationError as error:
        raise InvalidInputError.one(str(path), f"is no valid manifest: {error}") from None


def verify_published(folder: Path) -> None:
    """Checks that a folder holds what its manifest says, and nothing else.

    Every file is read once and hashed.

    Raises:
        InvalidInputError: With everything that is wrong with it.
    """
    manifest = read_manifest(folder)
    problems = []
    if folder.absolute().name != manifest.checkpoint.removeprefix("sha256:"):
        problems.append(
            Problem(str(folder), f"is not named by its checkpoint's digest, {manifest.checkpoint}")
        )
    if manifest.checkpoint != checkpoint_digest(manifest.files):
        problems.append(
            Problem(str(folder / MANIFEST_NAME), "its files do not have the checkpoint's digest")
        )
    for name, record in manifest.files.items():
        if what := _fault(folder / name, record):
            problems.append(Problem(str(folder / name), what))
    listed = {*manifest.files, MANIFEST_NAME}
    problems += [
        Problem(str(folder / name), "is not in the manifest") for name in unlisted(folder, listed)
    ]
    if problems:
        raise InvalidInputError(problems)


def checkpoint_digest(files: Mapping[str, FileRecord]) -> str:
    """The digest of a published folder's files, leaving out those that only describe them."""
    return files_digest(
        {name: record for name, record in files.items() if name not in DESCRIPTIONS}
    )


def unlisted(folder: Path, listed: set[str]) -> list[str]:
    """Paths of the files of a folder that are not ``listed``, sorted."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(set(found) - listed)


def holds(path: Path, record: FileRecord) -> bool:
    """Whether a local file is the recorded one."""
    return _fault(path, record) is None


def _fault(path: Path, record: FileRecord) -> str | None:
    try:
        if (size := path.stat().st_size) != record.bytes:
            return f"holds {size} bytes, not {record.bytes}"
        if hash_file(path) != record.sha256:
            return "its sha256 is not the manifest's"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None
