import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from quantlib.cli.deploy import deploy, serve_arguments
from quantlib.errors import InvalidInputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {"quantization": "gptq", "dtype": "bfloat16", "max_model_len": 256}
    (tmp_path / "vllm_config.json").write_text(json.dumps(config))
    return tmp_path


def test_arguments_come_from_the_checkpoint(folder: Path) -> None:
    printed = CliRunner().invoke(deploy, ["--model-path", str(folder), "--name", "m", "--print"])
    assert printed.exit_code == 0
    assert shlex.split(printed.output) == [
        "vllm", "serve", str(folder), "--host", "127.0.0.1", "--port", "8000",
        "--served-model-name", "m", "--quantization", "gptq", "--dtype", "bfloat16",
        "--max-model-len", "256",
    ]  # fmt: skip


def test_given_arguments_win(folder: Path) -> None:
    arguments = serve_arguments(folder, "::1", 1, "m", ("--max-model-len", "64"))
    assert arguments.count("--max-model-len") == 1
    assert arguments[-2:] == ["--max-model-len", "64"]


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="give a folder that quantlib wrote"):
        serve_arguments(tmp_path, "::1", 1, "m", ())
