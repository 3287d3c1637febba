"""The tensors outside of a model's blocks as a file of their own.

Embedding, final norm, head, towers and whatever else is not in a block are in every checkpoint as
they were, or, where they lay quantized, as what their codes stand for. The plan step writes them
once per model, so that merge need not read them: the checkpoint names the same file. A head,
embeddings and linears of draft layers that a recipe quantizes are left out: the worker of the last
range writes them.
"""

from __future__ import annotations

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.checks.linears import rounded_draft_names
from quantlib.checks.outer import rewritten_outside
from quantlib.quantization import QuantizationSection
from quantlib.steps.layout import open_receipt
from quantlib.store import Receipt, StepOutput, Store, commit_step

STEP = "outer"
OUTER_NAME = "outer.safetensors"


def separate_outer(store: Store, section: QuantizationSection, model: Receipt) -> Receipt:
    """Writes the tensors outside of the blocks, or finds that they are written.

    Args:
        store: Where the steps' files are.
        section: What of them is quantized, and left out here.
        model: Receipt of the fetch step.

    Returns:
        A receipt with the one file.
    """
    checkpoint, adapter = open_receipt(store, model)
    others = [f"{linear}.weight" for linear in rounded_draft_names(section, adapter)]
    others += rewritten_outside(section, adapter)

    def work(output: StepOutput) -> None:
        inner = tuple(adapter.block_prefix(block) for block in range(adapter.blocks))
        names = [name for name in checkpoint.tensors if not name.startswith(inner)]
        copy_tensors(checkpoint, [n for n in names if n not in others], output, OUTER_NAME)

    parameters = {"without": others} if others else {}
    return commit_step(store, STEP, parameters, {"model": model}, work)


def copy_tensors(checkpoint: Checkpoint, names: list[str], output: StepOutput, file: str) -> None:
    """Writes tensors of a checkpoint, as they are read, to a file of a step."""
    with SafetensorsWriter(output.local(file)) as writer:
        for name in names:
            info = checkpoint.info(name)
            writer.add_pieces(name, info.dtype, info.shape, checkpoint.pieces(name))
        digest, count = writer.finish()
    output.add(file, sha256=digest, tensors=count)
