"""Published folders: which run is behind one, for tests that sign it, and made-up ones."""

from __future__ import annotations

from typing import Any

from quantlib.publishing.jobs import enter_job
from quantlib.publishing.published import PublishedFolder
from quantlib.publishing.signing import Signer
from quantlib.report.manifest import MANIFEST_NAME
from quantlib.steps.publish import sign_published
from quantlib.store import Store, open_store

RUNS: dict[str, Any] = {}
"""By the folder's address."""


def sign(published: Store, signer: Signer, replace: bool = False) -> bool:
    """Signs a published folder, from the receipts of its run."""
    run = RUNS[published.address]
    place = PublishedFolder(published)
    return sign_published(run.store, run.recipe, place, signer, replace)[1]


def publish_as(destination: str, job: str) -> str:
    """Makes up a published folder, and notes it as the result of a job."""
    address = f"{destination}/model/digest"
    open_store(address).put_bytes(b"{}", MANIFEST_NAME)
    enter_job(destination, job, address, "sha256:1")
    return address
