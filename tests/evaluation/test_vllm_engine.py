"""vLLM's figures against those of transformers, on the same tiny models."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import descendants
from safetensors.torch import load_file

from quantlib.errors import QuantlibError
from quantlib.evaluation.job import COMPARISON_NAME, OUTCOME_NAME, REFERENCE_NAME, Job, Outcome
from quantlib.evaluation.process import Workers
from quantlib.evaluation.worker import load_engine, run
from quantlib.store import LocalStore

MakeJob = Callable[..., Job]
RunOne = Callable[[Job], Outcome]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


@pytest.fixture(scope="module")
def run_one() -> Iterator[RunOne]:
    """Runs jobs by vLLM."""
    with Workers("vllm") as workers:

        def run(job: Job) -> Outcome:
            workers.run(job, "model", Path(job.output) / "log", "the log", lambda: None)
            return Outcome.read(Path(job.output) / OUTCOME_NAME)

        yield run


def comparison(job: Job) -> dict[str, np.ndarray]:
    with np.load(Path(job.output) / COMPARISON_NAME) as found:
        return dict(found)


@pytest.fixture(scope="module")
def w4a16(
    tiny_llama: Path, small_recipe: Any, run_steps: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A quantized checkpoint as a folder."""
    folder = tmp_path_factory.mktemp("w4a16")
    store = LocalStore(folder / "store")
    made = run_steps(store, small_recipe(), tiny_llama)
    made.export(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def original(tiny_llama: Path, make_job: MakeJob, run_one: RunOne) -> tuple[Outcome, Path]:
    """What vLLM says of the original, and the file of its hidden states."""
    job = make_job(tiny_llama, engine="vllm")
    return run_one(job), Path(job.output) / REFERENCE_NAME


def test_a_model_does_not_differ_from_itself(
    tiny_llama: Path, original: tuple[Outcome, Path], make_job: MakeJob, run_one: RunOne
) -> None:
    first, reference = original
    job = make_job(tiny_llama, reference, engine="vllm")
    second = run_one(job)
    found = comparison(job)
    assert np.abs(found["kl"]).max() < 1e-5
    assert found["same_top1"].all()
    assert second.completions == first.completions
    assert second.vocabulary == 512


def test_both_engines_agree_on_a_quantized_model(
    tiny_llama: Path,
    w4a16: Path,
    original: tuple[Outcome, Path],
    make_job: MakeJob,
    run_one: RunOne,
) -> None:
    judged = make_job(w4a16, original[1], engine="vllm")
    run_one(judged)
    first = make_job(tiny_llama)
    run(first, load_engine(first), lambda: None)
    second = make_job(w4a16, Path(first.output) / REFERENCE_NAME)
    run(second, load_engine(second), lambda: None)

    vllm, transformers = comparison(judged), comparison(second)
    for name in ("reference_nll", "candidate_nll"):
        assert vllm[name].mean() == pytest.approx(transformers[name].mean(), abs=0.01)
        np.testing.assert_allclose(vllm[name], transformers[name], atol=0.4)  # bfloat16
    assert transformers["kl"].mean() > 0.005
    assert vllm["kl"].mean() == pytest.approx(transformers["kl"].mean(), rel=0.1)
    assert vllm["same_top1"].mean() == pytest.approx(transformers["same_top1"].mean(), abs=0.05)


def test_what_vllm_refuses_is_quoted(
    w4a16: Path, make_job: MakeJob, tmp_path: Path, run_one: RunOne
) -> None:
    broken = Path(shutil.copytree(w4a16, tmp_path / "broken"))
    config = json.loads((broken / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "sorcery"
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(QuantlibError, match="the engine failed") as error:
        run_one(make_job(broken, engine="vllm"))
    assert "sorcery" in str(error.value)
    assert str(error.value).endswith("set validation.engine to transformers")


def require_like(first: list[list[int]], second: list[list[int]]) -> None:
    """Completions of a random model part where two tokens are equally likely."""
    same = [one == two for pair in zip(first, second, strict=True) for one, two in zip(*pair)]
    assert sum(same) >= 0.75 * len(same) > 0


def test_a_model_over_two_devices_predicts_the_same(
    tiny_llama: Path, original: tuple[Outcome, Path], make_job: MakeJob, run_one: RunOne
) -> None:
    first, reference = original
    job = make_job(tiny_llama, engine="vllm", tensor_parallel_size=2)
    second = run_one(job)
    assert second.numerics == f"{first.numerics}; tensor parallel over 2 devices"
    alone, shared = load_file(reference), load_file(Path(job.output) / REFERENCE_NAME)
    assert alone.keys() == shared.keys()
    for name, expected in alone.items():
        torch.testing.assert_close(shared[name], expected, rtol=0.05, atol=0.2)
        assert (shared[name].float() - expected.float()).abs().mean() < 0.03
    require_like(first.completions, second.completions)


def test_a_quantized_model_over_two_devices_is_judged_alike(
    w4a16: Path, original: tuple[Outcome, Path], make_job: MakeJob, run_one: RunOne
) -> None:
    jobs = [
        make_job(w4a16, original[1], engine="vllm", tensor_parallel_size=size) for size in (1, 2)
    ]
    first, second = map(run_one, jobs)
    alone, shared = map(comparison, jobs)
    np.testing.assert_allclose(shared["reference_nll"], alone["reference_nll"], atol=1e-4)
    np.testing.assert_allclose(shared["candidate_nll"], alone["candidate_nll"], atol=0.25)
    assert shared["candidate_nll"].mean() == pytest.approx(alone["candidate_nll"].mean(), abs=0.02)
    assert shared["kl"].mean() == pytest.approx(alone["kl"].mean(), rel=0.05)
    assert shared["same_top1"].mean() == pytest.approx(alone["same_top1"].mean(), abs=0.05)
    assert second.vocabulary == first.vocabulary == 512
    require_like(first.completions, second.completions)


def devices_of(workers: Workers) -> list[int]:
    """The workers of vLLM itself, in the order of their ranks."""
    assert workers.process is not None
    found = {
        Path(f"/proc/{process}/cmdline").read_text().rstrip("\0 "): process
        for process in descendants(workers.process.pid)
    }
    return [found[f"VLLM::Worker_TP{rank}"] for rank in range(2)]


def test_a_device_whose_worker_is_killed_fails_the_job_alone(
    tiny_llama: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(tiny_llama, windows=8000, engine="vllm", tensor_parallel_size=2)
    killed: list[int] = []
    with Workers("vllm") as workers:

        def kill() -> None:
            if not killed:
                killed.append(devices_of(workers)[1])
                os.kill(killed[0], signal.SIGKILL)

        with pytest.raises(QuantlibError, match="VllmWorker-1 died unexpectedly"):
            workers.run(job, "original", tmp_path / "log", "the log", kill)
        assert workers.process is not None
        # What is left is the process that imports the engine, beside its keeper.
        assert len(descendants(workers.process.pid)) == 1
        workers.run(make_job(tiny_llama, engine="vllm"), "original", tmp_path / "log", "X", print)
