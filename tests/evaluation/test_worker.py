"""What a worker computes, with the transformers engine in this process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.errors import QuantlibError
from quantlib.evaluation.job import COMPARISON_NAME, OUTCOME_NAME, REFERENCE_NAME, Job, Outcome
from quantlib.evaluation.transformers_engine import load_model
from quantlib.evaluation.worker import load_engine, on_one_device, run
from quantlib.formats.dequantize import dequantized_state

MakeJob = Callable[..., Job]


def do(job: Job) -> Path:
    done: list[int] = []
    run(job, load_engine(job), lambda: done.append(1))
    assert len(done) == 4
    return Path(job.output)


def comparison(job: Job) -> dict[str, np.ndarray]:
    with np.load(do(job) / COMPARISON_NAME) as found:
        return dict(found)


@pytest.fixture
def reference(tiny_llama: Path, make_job: MakeJob) -> Path:
    return do(make_job(tiny_llama)) / REFERENCE_NAME


@pytest.fixture
def perturbed(tiny_llama: Path, tmp_path: Path) -> Path:
    """The model with noise on its projections."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "perturbed"))
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    for name, tensor in tensors.items():
        if name.endswith("proj.weight"):
            tensor += 0.1 * tensor.std() * torch.randn_like(tensor)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def log_softmax_of(model: Path, job: Job) -> np.ndarray:
    """float64 ``[windows, sequence - 1, vocabulary]``, straight from transformers."""
    loaded = load_model(model, torch.float32).eval()
    with torch.inference_mode():
        logits = loaded(torch.from_numpy(np.load(job.tokens))).logits
    return logits[:, :-1].double().log_softmax(-1).numpy()


def test_a_model_does_not_differ_from_itself(
    tiny_llama: Path, reference: Path, make_job: MakeJob
) -> None:
    job = make_job(tiny_llama, reference)
    found = comparison(job)
    assert found["kl"].shape == (4, 47)
    assert np.abs(found["kl"]).max() < 1e-6
    assert found["same_top1"].all()
    np.testing.assert_array_equal(found["reference_nll"], found["candidate_nll"])
    outcome, original = (
        Outcome.read(folder / OUTCOME_NAME) for folder in (Path(job.output), reference.parent)
    )
    assert outcome.completions == original.completions
    assert outcome.vocabulary == 512
    assert outcome.device == "cpu"
    assert all(0 < len(tokens) <= 6 for tokens in outcome.completions)


def test_a_perturbed_model_matches_a_direct_computation(
    tiny_llama: Path, perturbed: Path, reference: Path, make_job: MakeJob
) -> None:
    job = make_job(perturbed, reference)
    found = comparison(job)
    p, q = log_softmax_of(tiny_llama, job), log_softmax_of(perturbed, job)
    targets = np.load(job.tokens)[:, 1:, None]
    np.testing.assert_allclose(found["kl"], (np.exp(p) * (p - q)).sum(-1), rtol=1e-3, atol=1e-5)
    for name, expected in (("reference_nll", p), ("candidate_nll", q)):
        direct = -np.take_along_axis(expected, targets, -1)[..., 0]
        np.testing.assert_allclose(found[name], direct, rtol=1e-4, atol=1e-4)
    assert found["kl"].mean() > 0.01
    assert found["same_top1"].mean() == pytest.approx(
        (p.argmax(-1) == q.argmax(-1)).mean(), abs=0.01
    )


def test_probes_are_what_the_model_is_sure_of(
    perturbed: Path, reference: Path, make_job: MakeJob
) -> None:
    tensors = load_file(perturbed / "model.safetensors")
    tensors["model.norm.weight"] *= 20
    save_file(tensors, perturbed / "model.safetensors", metadata={"format": "pt"})
    job = make_job(perturbed, reference)
    probes = Outcome.read(do(job) / OUTCOME_NAME).probes
    assert len(probes) == 64
    predicted = log_softmax_of(perturbed, job)
    for window, position, token in probes:
        second, best = np.sort(predicted[window, position - 1])[-2:]
        assert predicted[window, position - 1].argmax() == token
        assert best - second > 0.99
    assert Outcome.read(reference.parent / OUTCOME_NAME).probes == []


def test_completions_are_greedy(tiny_llama: Path, reference: Path) -> None:
    outcome = Outcome.read(reference.parent / OUTCOME_NAME)
    model = load_model(tiny_llama, torch.float32).eval()
    for prompt, completion in zip([[5, 6, 7], [40, 41, 42, 43]], outcome.completions, strict=True):
        tokens = list(prompt)
        for expected in completion:
            with torch.inference_mode():
                assert model(torch.tensor([tokens])).logits[0, -1].argmax().item() == expected
            tokens.append(expected)


def test_another_head_is_refused(tiny_llama: Path, reference: Path, make_job: MakeJob) -> None:
    engine = load_engine(job := make_job(tiny_llama, reference))
    with torch.no_grad():
        engine._model.lm_head.weight[:100] += 0.05
    with pytest.raises(QuantlibError, match="head is not the original's"):
        run(job, engine, lambda: None)
    assert not (Path(job.output) / OUTCOME_NAME).exists()


def test_states_of_other_positions_are_refused(tiny_llama: Path, make_job: MakeJob) -> None:
    job = make_job(tiny_llama)
    engine = load_engine(job)
    score = engine.score

    def shifted(window: torch.Tensor, own_logprobs: bool) -> Any:
        scored = score(window, own_logprobs)
        return type(scored)(scored.hidden.roll(1, dims=0), scored.logprobs)

    engine.score = shifted
    with pytest.raises(QuantlibError, match="do not give the engine's own predictions"):
        run(job, engine, lambda: None)


@pytest.fixture(
    params=[
        {"format": "gptq"},
        {"format": "compressed-tensors", "weights": {"bits": 4, "group_size": 32}},
        {
            "method": "minmax",
            "format": "compressed-tensors",
            "weights": {"bits": 8, "group_size": -1},
            "activations": "int8",
        },
    ],
    ids=["gptq", "w4a16", "w8a8"],
)
def quantized(
    request: pytest.FixtureRequest,
    tiny_llama: Path,
    store: Any,
    small_recipe: Any,
    run_steps: Any,
    tmp_path: Path,
) -> Path:
    """A quantized checkpoint as a folder."""
    made = run_steps(store, small_recipe(quantization=request.param), tiny_llama)
    made.export(tmp_path / "quantized")
    return tmp_path / "quantized"


def test_a_quantized_checkpoint_is_what_its_codes_say(
    tiny_llama: Path, quantized: Path, reference: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    dequantized = Path(shutil.copytree(tiny_llama, tmp_path / "dequantized"))
    state = dict(dequantized_state(Checkpoint.open(FolderSource(quantized))))
    save_file(state, dequantized / "model.safetensors", metadata={"format": "pt"})
    by_codes = comparison(make_job(quantized, reference))
    by_weights = comparison(make_job(dequantized, reference))
    assert by_weights["kl"].mean() > 1e-4
    if 'input_activations": {' in (quantized / "config.json").read_text():
        # Rounding the activations comes on top.
        assert 1.2 * by_weights["kl"].mean() < by_codes["kl"].mean() < 0.1
    else:
        np.testing.assert_array_equal(by_codes["kl"], by_weights["kl"])


@pytest.mark.parametrize(
    ("seen", "device", "left", "kind"),
    [
        ("", "cuda:1", "1", "cuda"),
        ("4,6,7", "cuda:1", "6", "cuda"),
        ("4,6,7", "cuda", "4,6,7", "cuda"),
        ("", "cpu", "", "cpu"),
    ],
)
def test_a_device_by_its_number_is_the_only_one_that_is_seen(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, seen: str, device: str, left: str, kind: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    job = on_one_device(make_job(Path("model"), device=device))
    assert (job.device, os.environ["CUDA_VISIBLE_DEVICES"]) == (kind, left)
