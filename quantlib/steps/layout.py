"""What a model is made of, found out once and kept in the store beside it.

Finding it out imports transformers; the steps that only look names up read what was found.
"""

from __future__ import annotations

from importlib.metadata import version

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import ReceiptSource
from quantlib.models import BaseModelAdapter, Layout, open_model
from quantlib.store import Receipt, StepOutput, Store, commit_step

STEP = "layout"
LAYOUT_NAME = "layout.json"


def open_receipt(store: Store, model: Receipt) -> tuple[Checkpoint, BaseModelAdapter]:
    """Opens a model that was fetched.

    Args:
        store: Where the steps' files are.
        model: Receipt of the fetch step.

    Returns:
        The checkpoint, by the names that vLLM goes by, and the adapter.

    Raises:
        InvalidInputError: Something of it is missing or damaged, or it cannot be walked.
    """
    source = ReceiptSource(store, model)

    def work(output: StepOutput) -> None:
        _, adapter = open_model(source)
        output.add_bytes(LAYOUT_NAME, adapter.layout.model_dump_json().encode())

    parameters = {"transformers": version("transformers")}
    receipt = commit_step(store, STEP, parameters, {"model": model}, work)
    layout = Layout.model_validate_json(store.read(receipt.path(LAYOUT_NAME)))
    return open_model(source, layout)
