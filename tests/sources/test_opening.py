"""Headers of models wherever they are, without a weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantlib.planning.inspection import inspect_model
from quantlib.sources.opening import open_headers


def test_a_model_on_the_hub(hub: Any, tiny_llama: Path) -> None:
    hub.load(tiny_llama)
    found = inspect_model(open_headers("hf://org/tiny"))
    assert found == inspect_model(open_headers(str(tiny_llama)))
    assert found.blocks == 4
    assert all(hub.bytes_requested("model.safetensors"))  # parts of it


def test_a_gguf_file(write_gguf: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written = write_gguf(path)
    found = inspect_model(open_headers(str(path)))
    assert (found.architecture, found.walked) == ("LlamaForCausalLM", True)
    assert found.parameters == sum(weight.size for weight in written.values())
