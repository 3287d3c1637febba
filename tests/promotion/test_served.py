"""The smoke test against vLLM itself, and what it finds of a checkpoint with swapped scales."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kube_api
import pytest

from quantlib.promotion.published import Published, check_published
from quantlib.promotion.smoke import Limits, SmokeError, expected_of, smoke_test
from quantlib.serving.arguments import checkpoint_arguments, serve_command
from quantlib.serving.server import base_url, running
from quantlib.steps.publish import publish
from quantlib.steps.validate import validate
from quantlib.store import LocalStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform"),
]

ANY = {"max_perplexity_increase": 10, "max_kl_mean": 20, "min_top1_agreement": 0.001}


@pytest.fixture
def published(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
    tmp_path: Path,
) -> Published:
    validation = {"engine": "vllm", "thresholds": ANY, "max_new_tokens": 8}
    made = run_steps(store, small_recipe(validation=validation), tiny_llama)
    validated = validate(store, made.recipe, made.model, made.checkpoint, "cpu")
    _, address = publish(
        store, made.recipe, str(tmp_path / "published"), made.checkpoint, validated
    )
    return check_published(address)


@contextmanager
def served(folder: Path, log: Path) -> Iterator[str]:
    (port,) = kube_api.free_ports(1)
    arguments = {"host": "127.0.0.1", "port": port, "served_model_name": "tiny"}
    command = serve_command(
        folder, arguments | checkpoint_arguments(folder), ["--max-num-seqs", "1"]
    )
    url = base_url("127.0.0.1", port)
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with running(command, environment, log) as server:
        assert server.wait_until_healthy(f"{url}/health", 240, lambda _: None)
        yield url


def swap_scales(folder: Path) -> None:
    """Turns the scales of every linear around, so that none is where it belongs."""
    from safetensors.torch import load_file, save_file

    swapped = 0
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if "scale" in name and tensor.numel() > 1:
                tensors[name] = (tensor.flatten().flip(0).reshape(tensor.shape) * 4).contiguous()
                swapped += 1
        path.unlink()
        save_file(tensors, path, metadata={"format": "pt"})
    assert swapped


def test_vllm_answers_as_the_report_says_until_scales_are_swapped(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    expected = expected_of(published)
    assert len(expected.prompts) == 3
    assert {len(window) for window in expected.windows} == {64}
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in published.manifest.files:
        (folder / name).write_bytes(bytes(published.store.read(name)))
    with served(folder, tmp_path / "good.log") as url:
        assert "perplexity" in smoke_test(url, expected, Limits())
    swap_scales(folder)
    with served(folder, tmp_path / "bad.log") as url, pytest.raises(SmokeError) as caught:
        smoke_test(url, expected, Limits())
    assert any(
        what in str(caught.value)
        for what in ("prompts are answered as in the report", "perplexity is ")
    )
