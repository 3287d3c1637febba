"""What a checkpoint was made of and how, as an in-toto statement with SLSA's provenance.

The statement is described in docs/formats/published.md, and by https://in-toto.io/Statement/v1 and
https://slsa.dev/provenance/v1. It holds no time and no host: equal work has equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantlib.errors import InvalidInputError
from quantlib.report.evaluation import Evaluation
from quantlib.report.model import Report
from quantlib.runtime.foreign_json import parse_mapping
from quantlib.store import FileRecord
from quantlib.store.receipt import receipt_path

PROVENANCE_NAME = "provenance.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://quantlib.io/build/pipeline/v1"
BUILDER = "https://quantlib.io/builder/publish/v1"


def provenance_of(report: Report) -> dict[str, Any]:
    """The content of ``provenance.json``: all that is needed to make the checkpoint again.

    Args:
        report: Of the checkpoint.
    """
    provenance = report.provenance
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects_of(report.sizes.files),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"source": report.model.source, "recipe": report.recipe},
                "internalParameters": {
                    "steps": [
                        {
                            "step": receipt.step,
                            "key": receipt.key,
                            "image": receipt.image,
                            "hardware": receipt.hardware,
                            "code": receipt.code,
                        }
                        for receipt in provenance.receipts
                    ]
                },
                "resolvedDependencies": _dependencies(report),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": report.versions},
                "byproducts": [
                    {
                        "name": f"receipt of {receipt.step}",
                        "uri": receipt_path(receipt.step, receipt.key),
                        "digest": _digest(receipt.digest),
                        "annotations": {"step": receipt.step, "key": receipt.key},
                    }
                    for receipt in provenance.receipts
                ],
            },
            "quantlib_checkpoint": provenance.checkpoint_digest,
            "quantlib_recipe": provenance.recipe_digest,
            "quantlib_gate": {
                **report.verdict.model_dump(mode="json"),
                **(_judged(report.evaluation) if report.evaluation else {}),
            },
        },
    }


def subjects_of(files: Mapping[str, FileRecord]) -> list[dict[str, Any]]:
    """The statement's subjects: the checkpoint's files, by name."""
    return [
        {"name": name, "digest": {"sha256": record.sha256}}
        for name, record in sorted(files.items())
    ]


def read_subjects(data: bytes, where: str) -> list[dict[str, Any]]:
    """The subjects of a published ``provenance.json``.

    Args:
        data: Its content.
        where: Its address, for people.

    Raises:
        InvalidInputError: It is no statement of this kind.
    """
    try:
        statement = parse_mapping(data, where, "so it is no in-toto statement")
        kinds = statement["_type"], statement["predicateType"]
        subjects = statement["subject"]
    except KeyError:
        raise InvalidInputError.one(where, "is no in-toto statement") from None
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise InvalidInputError.one(
            where, f"is no SLSA provenance, but {' of '.join(map(str, kinds))}"
        )
    return subjects


def source_uri(source: Mapping[str, Any]) -> str | None:
    """Where a model came from, as ``--model`` takes it; None for a local folder or file.

    Args:
        source: As the fetch step recorded it.
    """
    if source.get("kind") == "hub":
        return f"hf://{source.get('repo')}@{source.get('commit')}"
    return source.get("address")


def _dependencies(report: Report) -> list[dict[str, Any]]:
    source, provenance = report.model.source, report.provenance
    model: dict[str, Any] = {"name": "model", "digest": _digest(report.model.digest)}
    if uri := source_uri(source):
        model["uri"] = uri
    if "commit" in source:
        model["digest"]["gitCommit"] = source["commit"]
    receipts = provenance.receipts
    codes = sorted({pair for receipt in receipts for pair in receipt.code.items()})
    found = [model, *(_code(name, version) for name, version in codes)]
    if text := report.calibration:
        found.append(_text("calibration text", text.source, text.digest))
    if judged := report.evaluation:
        found.append(_text("evaluation text", judged.text.source, judged.text.digest))
    images = sorted({receipt.image for receipt in receipts if receipt.image})
    found += [
        {"name": "image", "uri": image, "digest": _digest(image.rpartition("@")[2])}
        for image in images
        if "@sha256:" in image
    ]
    return found


def _code(name: str, version: str) -> dict[str, Any]:
    """The code of a package that did a step, whose version ends in its digest."""
    release, _, digest = version.rpartition("+")
    return {
        "name": name,
        "digest": {"sha256": digest},
        "annotations": {"version": f"{release}+{digest[:12]}" if release else digest[:12]},
    }


def _text(name: str, source: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": _digest(digest), "annotations": {"source": source}}


def _judged(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "engine": evaluation.engine,
        "engine_version": evaluation.engine_version,
        "device": evaluation.device,
        "perplexity_original": evaluation.original.perplexity,
        "perplexity_quantized": evaluation.quantized.perplexity,
        "kl_mean": evaluation.kl_mean,
        "kl_standard_error": evaluation.kl_standard_error,
        "top1_agreement": evaluation.top1_agreement,
        "checks": [check.model_dump(mode="json") for check in evaluation.gate.checks],
    }


def _digest(digest: str) -> dict[str, str]:
    algorithm, _, digits = digest.partition(":")
    return {algorithm: digits}
