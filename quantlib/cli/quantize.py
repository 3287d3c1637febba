"""``quantlib quantize``."""

from __future__ import annotations

import json
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from quantlib.checks.recipe import parse_recipe, recipe_path, with_scheme
from quantlib.cli.result_options import (
    exit_where_refused,
    print_json,
    progress,
    result_of,
    result_options,
)
from quantlib.cli.search_options import budget_option, candidates_option
from quantlib.config import load_config
from quantlib.errors import (
    InvalidInputError,
    Problem,
    QuantlibError,
    StoreError,
    collected,
    os_error_line,
)
from quantlib.recipe import AskedRecipe
from quantlib.report.explain import remedies
from quantlib.report.text import evaluation_line
from quantlib.schemes import KVCache
from quantlib.sources.naming import named

if TYPE_CHECKING:
    from quantlib.report.model import Report


def _layers(_: click.Context, __: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of block indices, as 0,1,2") from None


_EXAMPLES = """\b
Examples:
  quantlib quantize --model ./Llama --output ./Llama-W4
  quantlib quantize --model ./Llama --output ./Llama-W8A8 --recipe smooth_quant
  quantlib quantize --model ./Llama --output ./out --layer-wise --layers 0,1,2
  quantlib quantize --model hf://org/Llama@main --output ./out --method awq
  quantlib quantize --model ./Llama --output ./out --budget 4.5bits
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--model",
    "--model-path",
    "model_path",
    required=True,
    help="A folder, a .gguf file, hf://org/name@rev, or s3://bucket/prefix.",
)
@click.option(
    "--output",
    "--output-path",
    "output_path",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder to write.",
)
@click.option(
    "--recipe",
    "--config",
    "config",
    help="A recipe to start from: a file, or the name of one that ships. Options override it.",
)
@click.option("--method", help="gptq (default), awq, hqq, minmax, or another registered quantizer.")
@click.option("--bits", type=int, help="Bits of a weight: 2, 4 (default) or 8.")
@click.option(
    "--group-size",
    help="32, 64, 128, -1 for one per channel, or auto (default): the largest that fits.",
)
@click.option("--symmetric/--asymmetric", default=None, help="Without or with zero points.")
@click.option(
    "--scheme",
    help="How weights and activations are represented, by its usual name: W4A16, FP8_DYNAMIC, "
    "NVFP4, MXFP4, ...; an unknown one lists them.",
)
@click.option("--weight-type", help="int (default), or float: FP8, or FP4 of 4 bits.")
@click.option(
    "--activations",
    help="int8 and fp8: dynamic, per token; fp8-group, mxfp4 and mxfp8 per group of channels too. "
    "int8-static, fp8-static, nvfp4: under one number per linear. Default: none.",
)
@budget_option
@candidates_option
@click.option(
    "--kv-cache",
    type=click.Choice(get_args(KVCache)),
    help="fp8: keys and values with a scale per layer; fp8-head: per head. Default: none.",
)
@click.option("--format", "format_", help="awq, gptq or compressed-tensors. Default: by method.")
@click.option("--layer-wise", is_flag=True, help="Quantize only the blocks of --layers.")
@click.option("--layers", callback=_layers, help="Block indices: 0,1,2. The rest stays exact.")
@click.option("--outlier-suppression", help="smooth_quant, none, or auto.")
@click.option("--calibration-dataset", help="File or folder of text, s3://…, hf://datasets/….")
@click.option("--num-samples", type=int, help="Calibration windows. Default: 128.")
@click.option("--sequence-length", type=int, help="Tokens in a window. Default: 512.")
@click.option("--num-ranges", type=int, help="Independent ranges of blocks. Default: 1.")
@click.option("--seed", type=int, help="Chooses the calibration windows. Default: 0.")
@click.option(
    "--name", help="What the report calls the model. Default: its folder's or file's name."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--validate", is_flag=True, help="Compare with the original; exit 3 if worse.")
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="GPUs that validation spreads a model over.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Keep the steps' files here, for other runs. Default: a folder in the output, "
    "removed when the run is done.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the checkpoint that quantlib wrote there; other files are never removed.",
)
@result_options
def quantize(
    model_path: str,
    output_path: Path,
    config: str | None,
    device: str,
    validate: bool,
    gpus: int,
    store: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Quantize a model with one command.

    Writes a folder that vLLM serves: weights, config.json with quantization_config, tokenizer,
    vllm_config.json, and a report as quantization_report.json and .html.

    When an interrupted command is given again, the steps that were finished are not done again.
    """
    from quantlib.checks.machine import place_problems
    from quantlib.checks.run import input_problems
    from quantlib.checks.tasks import uninstalled_problems
    from quantlib.evaluation.choose_engine import choose_engine
    from quantlib.manager import QuantizationManager
    from quantlib.output import WORK_NAME, output_problems, writing
    from quantlib.report.model import HTML_NAME
    from quantlib.runtime.devices import resolve_device
    from quantlib.store import LocalStore

    recipe = named(build_recipe(config, options), model_path)
    output_path = output_path.expanduser().absolute()
    folder = store or output_path / WORK_NAME / "store"
    problems = output_problems(output_path, overwrite=overwrite)
    written = {"the output": str(output_path)} | ({"the store": str(store)} if store else {})
    problems += place_problems(recipe, model_path, written)
    validated_on = device if validate else None
    problems += input_problems(
        recipe, model_path, str(folder), gpus, output_path, validated_on, validated=validate
    )
    checks: list[Callable[[], object]] = [lambda: resolve_device(device, gpus if validate else 1)]
    if validate:
        checks.append(lambda: choose_engine(recipe.validation.engine, gpus=gpus))
        problems += uninstalled_problems(recipe)
    elif gpus > 1:
        problems.append(Problem("--gpus", "is for validation only", "add --validate"))
    for check in checks:
        with collected(problems):
            check()
    if problems:
        raise InvalidInputError(problems)
    with writing(output_path), _tidy(store), _saying_what_is_kept(folder), progress(quiet=quiet):
        manager = QuantizationManager(recipe, model_path, LocalStore(folder), device, gpus)
        result = manager.quantize(validated=validate)
        manager.save(result, output_path)
    report = result.report
    page = output_path / HTML_NAME
    if as_json:
        found = {**result_of(report), "report": str(page), "output": str(output_path)}
        print_json("quantize", found)
    else:
        _print_outcome(report, model_path, output_path, page)
    exit_where_refused(report)


@contextmanager
def _tidy(store: Path | None) -> Iterator[None]:
    """Removes a store that was made for input that then was refused."""
    existed = store is None or store.exists()
    try:
        yield
    except InvalidInputError:
        if store is not None and not existed:
            shutil.rmtree(store, ignore_errors=True)
        raise


@contextmanager
def _saying_what_is_kept(store: Path) -> Iterator[None]:
    """After an interruption, says what the same command need not do again."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        click.echo(f"interrupted: {_kept(store)}", err=True)
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else error.code) from None
    except OSError as error:
        line = os_error_line(error, store)
        raise QuantlibError(f"{line}; make room or mend that; {_kept(store)}") from None
    except StoreError as error:
        raise QuantlibError(f"{error}; {_kept(store)}") from None


def _kept(store: Path) -> str:
    from quantlib.store import LocalStore
    from quantlib.store.inventory import take_inventory

    try:
        found = take_inventory(LocalStore(store)).steps
    except (QuantlibError, OSError):
        found = ()
    done = Counter(each.step for each in found if each.receipt is not None)
    if not done:
        return "no step was finished, so nothing is kept"
    steps = ", ".join(f"{step} ({n} times)" if n > 1 else step for step, n in done.items())
    return (
        f"finished and kept in {store}: {steps}. The same command again goes on after them; of a "
        "range in the making, the blocks that were finished are kept too"
    )


def _print_outcome(report: Report, model_path: str, output: Path, page: Path) -> None:
    """The verdict first; how to serve it last, and not at all where it was refused."""
    sizes, outcome = report.sizes, report.verdict.outcome
    if report.evaluation is not None:
        click.echo(f"{outcome}: {report.verdict.reason}")
        click.echo(evaluation_line(report.evaluation))
    for remedy in remedies(report):
        click.echo(f"try:    {remedy}")
    size = f"{sizes.bytes_original / 1e6:.0f} MB -> {sizes.bytes_quantized / 1e6:.0f} MB"
    if report.model.source.get("kind") == "gguf":
        size += f" (the .gguf file has {Path(model_path).stat().st_size / 1e6:.0f} MB)"
    if quantized := report.model.source.get("quantized"):
        click.echo(f"source: {quantized}")
    click.echo(f"{output}: {size}")
    click.echo(f"report: {page}")
    if report.calibration is not None and report.calibration.shipped:
        click.echo("calibrated on the text that ships; give --calibration-dataset for your own")
    if not report.verdict.refused:
        click.echo(f"serve:  {_how_to_serve(output)}")


def _how_to_serve(output: Path) -> str:
    from quantlib.models.fusion import not_served

    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    architecture = next(iter(config.get("architectures") or ()), None)
    return not_served(architecture) or f"quantlib deploy --model {shlex.quote(str(output))}"


_PATHS = {
    "method": ("quantization", "method"),
    "bits": ("quantization", "weights", "bits"),
    "group_size": ("quantization", "weights", "group_size"),
    "symmetric": ("quantization", "weights", "symmetric"),
    "weight_type": ("quantization", "weights", "type"),
    "activations": ("quantization", "activations"),
    "kv_cache": ("quantization", "kv_cache"),
    "format_": ("quantization", "format"),
    "budget": ("quantization", "budget"),
    "candidates": ("quantization", "candidates"),
    "layers": ("quantization", "layers"),
    "outlier_suppression": ("outlier_suppression", "method"),
    "calibration_dataset": ("calibration", "dataset"),
    "num_samples": ("calibration", "num_samples"),
    "sequence_length": ("calibration", "sequence_length"),
    "num_ranges": ("num_ranges",),
    "seed": ("calibration", "seed"),
    "name": ("publish", "name"),
}
"""Where in a recipe each option of the command goes."""


def build_recipe(config: str | None, options: dict[str, Any]) -> AskedRecipe:
    """The recipe that a file and options on top of it make.

    Args:
        config: A recipe file, the name of a shipped recipe, or None for the defaults.
        options: Values of the command's options, None where they were not given.

    Raises:
        InvalidInputError: With one problem per fault.
    """
    layer_wise = options.pop("layer_wise")
    if layer_wise and options["layers"] is None:
        raise InvalidInputError.one("--layer-wise", "names no block", "add --layers 0,1,2")
    data = {} if config is None else load_config(recipe_path(config))
    data, problems = with_scheme(data, options.pop("scheme"), "--scheme")
    for name, value in options.items():
        if value is None:
            continue
        if name == "outlier_suppression" and value in ("none", "auto"):
            data[name] = None if value == "none" else value
            continue
        *path, last = _PATHS[name]
        section = data
        for part in path:
            inner = section.get(part)
            section[part] = dict(inner) if isinstance(inner, dict) else {}
            section = section[part]
        if name == "method" and section.get("method", value) != value:
            section.pop("options", None)
        section[last] = value
    return parse_recipe(data, config or "options", problems)
