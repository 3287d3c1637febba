"""The original's final hidden states by its own forward, block by block.

What vLLM gives holds the whole original; here no more than one block of it, the embeddings, or a
part of the head is in memory, beside the states of all windows. So a model is judged where only its
quantized form can be served.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from quantlib.checkpoint.source import ReceiptSource
from quantlib.evaluation.given_states import logits_of
from quantlib.evaluation.job import OUTCOME_NAME, REFERENCE_NAME, Outcome, StreamedJob
from quantlib.evaluation.metrics import next_token_logprobs
from quantlib.models import Layout, open_model
from quantlib.models.streamed import StreamedModel
from quantlib.runtime.devices import resolve_device
from quantlib.store import Receipt, open_store

_LOGITS_BYTES_AT_ONCE = 1 << 28


def stream_original(job: StreamedJob, block_done: Callable[[], None]) -> None:
    """Writes what an engine would write of the original, without completions.

    Args:
        job: What to read.
        block_done: Called after each block.

    Raises:
        InvalidInputError: The model cannot be walked.
    """
    source = ReceiptSource(open_store(job.store), Receipt.model_validate_json(job.model))
    checkpoint, adapter = open_model(source, Layout.model_validate_json(job.layout))
    device = resolve_device(job.device)
    streamed = adapter.load_model(checkpoint, device)
    tokens = torch.from_numpy(np.load(job.tokens))
    tensors = read_windows(streamed, tokens, block_done)
    output = Path(job.output)
    save_file(tensors, output / REFERENCE_NAME)
    dtype = str(streamed.dtype).removeprefix("torch.")
    Outcome(
        device=device.type,
        numerics=f"blocks in {dtype}, by transformers' modules, one block in memory at a time",
        vocabulary=None,
        probes=[],
        completions=[],
        answers=[],
        seconds=0.0,
        throughput_method="",
    ).write(output / OUTCOME_NAME)


@torch.inference_mode()
def read_windows(
    streamed: StreamedModel, tokens: Tensor, block_done: Callable[[], None]
) -> dict[str, Tensor]:
    """The tensors of :data:`quantlib.evaluation.job.REFERENCE_NAME`.

    Args:
        streamed: The original.
        tokens: int64 ``[windows, sequence]``.
        block_done: Called after each block.
    """
    walk = streamed.walk(tokens, range(streamed.adapter.blocks), to_head=True)
    hidden: Tensor | None = None
    for block in walk:
        walk.pass_through(block)
        if block.index + 1 == streamed.adapter.blocks:
            states = [state[..., :-1, :].cpu() for state in walk.head_inputs()]
            hidden = torch.cat(states)
        block_done()
    assert hidden is not None
    logprobs = _own_logprobs(streamed, hidden[0], tokens[0, 1:])
    return {"hidden": hidden, "logprobs": logprobs}


def _own_logprobs(streamed: StreamedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log likelihoods of a window's tokens by the model's own head, float32 ``[positions]``.

    The head computes in float32, as engines let it where they are asked for the same.
    """
    streamed.read_head()
    model = streamed.reader.skeleton.model
    model.get_output_embeddings().float()
    rows = max(1, _LOGITS_BYTES_AT_ONCE // (4 * streamed.reader.skeleton.text_config.vocab_size))
    hidden, targets = hidden.to(streamed.device).float(), targets.to(streamed.device)
    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    found = [next_token_logprobs(logits_of(model, states), ahead) for states, ahead in parts]
    return torch.cat(found).cpu()
