"""``receipts.json`` of a published folder: the receipts of all steps that the checkpoint rests on.

With it a folder says by itself, without the store that it was made in, what made it: each receipt
names the ones that it read by their digests, the last one is the verdict's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from quantlib.errors import InvalidInputError
from quantlib.report.manifest import Manifest, checkpoint_files
from quantlib.report.model import Report
from quantlib.runtime.foreign_json import parse_mapping
from quantlib.store import Receipt

SCHEMA = "quantlib/receipts/1"


def render_receipts(lineage: Sequence[Receipt]) -> bytes:
    """The content of ``receipts.json``.

    Args:
        lineage: The receipts, each after the ones that it read; the validation's last.
    """
    receipts = [json.loads(receipt.to_json()) for receipt in lineage]
    return json.dumps({"schema": SCHEMA, "receipts": receipts}, indent=1).encode() + b"\n"


def read_receipts(data: bytes, where: str) -> list[Receipt]:
    """The receipts of a published folder, each of whose inputs is among the ones before it.

    Args:
        data: Content of ``receipts.json``.
        where: Its address, for people.

    Raises:
        InvalidInputError: It holds something else, or a receipt that rests on one that is missing.
    """
    content = parse_mapping(data, where)
    entries = content.get("receipts")
    if content.get("schema") != SCHEMA or not isinstance(entries, list) or not entries:
        raise InvalidInputError.one(where, "holds no receipts of a checkpoint")
    found: dict[str, Receipt] = {}
    for number, entry in enumerate(entries):
        receipt = Receipt.from_json(json.dumps(entry), f"{where}: receipts.{number}")
        for name, read in receipt.inputs.items():
            earlier = found.get(read.digest)
            if earlier is None or (earlier.step, earlier.key) != (read.step, read.key):
                what = f"the receipt of {receipt.step} rests on a {name} that is not among them"
                raise InvalidInputError.one(where, what)
        found[receipt.digest()] = receipt
    return list(found.values())


def check_receipts(data: bytes, where: str, manifest: Manifest, report: Report) -> None:
    """Checks that the receipts are of this checkpoint, this report and this verdict.

    Args:
        data: Content of ``receipts.json``.
        where: Its address, for people.
        manifest: Of the folder.
        report: Of the folder.

    Raises:
        InvalidInputError: They are of another one.
    """
    lineage = read_receipts(data, where)
    validation = lineage[-1]
    by_digest = {receipt.digest(): receipt for receipt in lineage}
    read = validation.inputs.get("checkpoint")
    merged = by_digest.get(read.digest) if read else None
    if merged is None or validation.facts.get("verdict") != "passed":
        raise InvalidInputError.one(where, "does not end in the receipt of a passed verdict")
    wanted = {
        name: (record.bytes, record.sha256)
        for name, record in checkpoint_files(manifest.files).items()
    }
    made = {
        name: (record.bytes, record.sha256)
        for name, record in merged.files.items()
        if name in wanted
    }
    if made != wanted or merged.facts.get("checkpoint_digest") != manifest.checkpoint:
        raise InvalidInputError.one(where, "is of another checkpoint than the manifest")
    if [entry.digest for entry in report.provenance.receipts] != list(by_digest):
        raise InvalidInputError.one(where, "is of other steps than the report")
