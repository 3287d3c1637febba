"""Runs models, each in a process of its own: ``python -m quantlib.evaluation.worker ENGINE FD``.

The engine is imported once, which takes ten seconds for vLLM; then each line of standard input is
a job (``["JOB.json", "LOG"]``), done by a forked process, so that nothing of a model outlives its
job. The second argument is an open file descriptor that gets a line for every window or block that
is done, and ``exit`` with its exit code and peak memory in KiB for every job.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TextIO, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantlib.errors import QuantlibError
from quantlib.evaluation import probes
from quantlib.evaluation.engine import Engine
from quantlib.evaluation.job import (
    COMPARISON_NAME,
    DRAFTED_NAME,
    OUTCOME_NAME,
    REFERENCE_NAME,
    STREAMED,
    Drafted,
    Job,
    Outcome,
    StreamedJob,
)
from quantlib.evaluation.metrics import Comparison, Leads
from quantlib.evaluation.refusals import in_words
from quantlib.runtime.process_group import end_others

_Columns = TypeVar("_Columns", Comparison, Leads)
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LOGITS_BYTES_AT_ONCE = 1 << 28
_CHECKED_POSITIONS = 64
_NOT_OWN = (
    "this version of the engine cannot be used: the captured hidden states do not give the "
    "engine's own predictions"
)
_OTHER_HEAD = (
    "the quantized checkpoint's head is not the original's: on the original's hidden states they "
    "give other predictions"
)


def run(job: Job, engine: Engine, window_done: Callable[[], None]) -> None:
    """Does the job with a loaded engine and writes its files.

    Raises:
        QuantlibError: The hidden states are not those that the engine's own predictions are made
            of, or the two models do not have the same head.
    """
    windows = torch.from_numpy(np.load(job.tokens))
    output = Path(job.output)
    vocabulary, leads = None, list[Leads]()
    if job.reference is None:
        save_file(read_windows(engine, windows, window_done), output / REFERENCE_NAME)
    else:
        comparison, leads, vocabulary = compare_windows(
            engine, windows, load_file(job.reference), window_done
        )
        np.savez(output / COMPARISON_NAME, **vars(comparison))
    started = time.monotonic()
    completions = engine.complete(job.prompts, job.max_new_tokens) if job.prompts else []
    seconds = time.monotonic() - started
    answers = engine.complete(job.questions, job.answer_tokens) if job.questions else []
    Outcome(
        device=engine.device,
        numerics=engine.numerics,
        vocabulary=vocabulary,
        probes=probes.pick(leads),
        completions=completions,
        answers=answers,
        seconds=seconds,
        throughput_method=engine.throughput_method,
    ).write(output / OUTCOME_NAME)


@torch.inference_mode()
def read_windows(
    engine: Engine, windows: Tensor, window_done: Callable[[], None]
) -> dict[str, Tensor]:
    """The tensors that :data:`REFERENCE_NAME` holds.

    Args:
        engine: With the original model.
        windows: int64 ``[windows, sequence]``.
        window_done: Called after each window.
    """
    hidden = []
    logprobs = torch.empty(0)
    for index, window in enumerate(windows):
        scored = engine.score(window, own_logprobs=index == 0)
        states = scored.hidden[:-1]
        if scored.logprobs is not None:
            logprobs = scored.logprobs.cpu()
            _require_agreement(engine, states, window, logprobs, _NOT_OWN)
        hidden.append(states.cpu())
        window_done()
    return {"hidden": torch.stack(hidden), "logprobs": logprobs}


@torch.inference_mode()
def compare_windows(
    engine: Engine,
    windows: Tensor,
    reference: dict[str, Tensor],
    window_done: Callable[[], None],
) -> tuple[Comparison, list[Leads], int]:
    """Compares a model with the original's hidden states.

    Args:
        engine: With the quantized model.
        windows: int64 ``[windows, sequence]``.
        reference: The tensors that :data:`REFERENCE_NAME` holds.
        window_done: Called after each window.

    Returns:
        The comparison, each tensor ``[windows, sequence - 1]``; what the model finds most likely
        at the first positions of the first windows; and the size of the vocabulary.
    """
    hidden = reference["hidden"]
    vocabulary = engine.count_logits(hidden[0, :1])
    rows = max(1, _LOGITS_BYTES_AT_ONCE // (2 * 4 * vocabulary))
    logprobs = reference["logprobs"]
    _require_agreement(engine, hidden[0], windows[0], logprobs, _OTHER_HEAD, original=True)
    found: list[Comparison] = []
    leads: list[Leads] = []
    for index, window in enumerate(windows):
        scored = engine.score(window, own_logprobs=index == 0)
        states = scored.hidden[:-1]
        if scored.logprobs is not None:
            _require_agreement(engine, states, window, scored.logprobs, _NOT_OWN)
        parts = [
            engine.compare(*part)
            for part in zip(
                hidden[index].split(rows), states.split(rows), window[1:].split(rows), strict=True
            )
        ]
        found.append(_joined(torch.cat, parts))
        if index < probes.WINDOWS:
            first = states[: probes.POSITIONS].split(rows)
            leads.append(_joined(torch.cat, [engine.leads(part) for part in first]))
        window_done()
    return _joined(torch.stack, found), leads, vocabulary


def _joined(join: Callable[[list[Tensor]], Tensor], parts: list[_Columns]) -> _Columns:
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return type(parts[0])(*(join(list(column)) for column in columns))


def _require_agreement(
    engine: Engine,
    hidden: Tensor,
    window: Tensor,
    logprobs: Tensor,
    complaint: str,
    *,
    original: bool = False,
) -> None:
    """Requires that the head gives given log likelihoods on a window's last positions."""
    given = logprobs[-_CHECKED_POSITIONS:].cpu()
    targets = window[1:][-_CHECKED_POSITIONS:]
    states = hidden[-_CHECKED_POSITIONS:]
    found = engine.next_token_logprobs(states, targets, original=original)
    error = float((found - given).abs().max())
    if not error <= engine.tolerance and given.isfinite().all():
        raise QuantlibError(f"{complaint}: they differ by up to {error:.3g} nats")


def draft(job: Job) -> None:
    """Lets a model's draft layers guess, and writes what became of it, or why vLLM does not."""
    from quantlib.evaluation.vllm_engine import VllmEngine

    try:
        engine = VllmEngine(job)
        engine.complete(job.prompts, job.max_new_tokens)
        drafted = engine.drafted()
        engine.close()
    except Exception as error:
        traceback.print_exc()
        drafted = Drafted(refused=in_words(error))
    drafted.write(Path(job.output) / DRAFTED_NAME)


def on_one_device(job: Job) -> Job:
    """Lets this process see the one CUDA device that a job names by its number, and no other.

    vLLM takes whole kinds of devices. No device may have been touched before.
    """
    kind, _, number = job.device.partition(":")
    if not number:
        return job
    seen = os.environ.get(_VISIBLE, "").split(",")
    os.environ[_VISIBLE] = seen[int(number)] if int(number) < len(seen) and seen[0] else number
    return replace(job, device=kind)


def load_engine(job: Job) -> Engine:
    """Loads the job's model with the job's engine."""
    if job.engine == "vllm":
        from quantlib.evaluation.vllm_engine import VllmEngine

        return VllmEngine(job)
    from quantlib.evaluation.transformers_engine import TransformersEngine

    return TransformersEngine(job)


def _preload(engine: str) -> None:
    """Imports an engine."""
    gc.disable()  # it would take a fifth of the time; and what is imported stays
    if engine == "vllm":
        from quantlib.evaluation.vllm_engine import preload
    else:
        from quantlib.evaluation.transformers_engine import preload
    preload()
    gc.freeze()
    gc.enable()


def _run_forked(engine_name: str, job_file: str, log: str, progress: TextIO) -> tuple[int, int]:
    """Does a job in a forked process, until all that it started is gone.

    Returns:
        Its exit code, and the largest memory of it and of what it started, in KiB.
    """
    child = os.fork()
    if child:
        _, status, usage = os.wait4(child, 0)
        end_others()
        return os.waitstatus_to_exitcode(status), usage.ru_maxrss
    status = 1
    try:
        with open(log, "wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        if engine_name == STREAMED:
            from quantlib.evaluation.streamed_original import stream_original

            stream_original(StreamedJob.read(Path(job_file)), lambda: print("block", file=progress))
        elif (job := on_one_device(Job.read(Path(job_file)))).drafts:
            draft(job)
        else:
            engine = load_engine(job)  # kept until the end: taking it apart would take a second
            try:
                run(job, engine, lambda: print("window", file=progress))
            finally:
                engine.close()
        status = 0
    except QuantlibError as error:
        print(f"{type(error).__name__}: {error}")
        status = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        # Not sys.exit: what the parent registered to be done at exit is not the child's to do.
        os._exit(status)


def main() -> None:
    """Does the jobs of standard input."""
    engine, descriptor = sys.argv[1], int(sys.argv[2])
    os.set_inheritable(descriptor, False)
    _preload(engine)
    with os.fdopen(descriptor, "w", buffering=1) as progress:
        for line in sys.stdin:
            job_file, log = json.loads(line)
            print("exit", *_run_forked(engine, job_file, log, progress), file=progress)
    os._exit(0)  # taking the imported modules apart would take two seconds


if __name__ == "__main__":
    main()
