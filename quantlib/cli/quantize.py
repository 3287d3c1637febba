"""``quantlib quantize``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import click

from quantlib.config import load_config
from quantlib.errors import GateFailedError, InvalidInputError
from quantlib.recipe import Activations, Recipe, parse_recipe, recipe_path


def _layers(_: click.Context, __: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of block indices, as 0,1,2") from None


_EXAMPLES = """\b
Examples:
  quantlib quantize --model-path ./Llama --output-path ./Llama-W4
  quantlib quantize --model-path ./Llama --output-path ./Llama-W8A8 --config smooth_quant
  quantlib quantize --model-path ./Llama --output-path ./out --layer-wise --layers 0,1,2
  quantlib quantize --model-path hf://org/Llama@main --output-path ./out --group-size 64
"""


@click.command(epilog=_EXAMPLES)
@click.option("--model-path", required=True, help="A folder, a .gguf file, or hf://org/name@rev.")
@click.option(
    "--output-path", required=True, type=click.Path(path_type=Path), help="The folder to write."
)
@click.option("--config", help="A recipe to start from: YAML or JSON. Options override it.")
@click.option("--method", help="gptq (default), awq, minmax, or another registered quantizer.")
@click.option("--bits", type=int, help="Bits of a weight: 4 (default) or 8.")
@click.option("--group-size", type=int, help="32, 64, 128 (default), or -1 for one per channel.")
@click.option("--symmetric/--asymmetric", default=None, help="Without or with zero points.")
@click.option("--weight-type", type=click.Choice(["int", "float"]), help="float: FP8 E4M3.")
@click.option(
    "--activations",
    type=click.Choice(get_args(Activations)),
    help="int8 and fp8: dynamic, per token. int8-static: per tensor. Default: none.",
)
@click.option("--format", "format_", help="awq, gptq or compressed-tensors. Default: by method.")
@click.option("--layer-wise", is_flag=True, help="Quantize only the blocks of --layers.")
@click.option("--layers", callback=_layers, help="Block indices: 0,1,2. The rest stays exact.")
@click.option("--outlier-suppression", help="smooth_quant.")
@click.option("--calibration-dataset", help="Text file, folder, or `datasets` name.")
@click.option("--num-samples", type=int, help="Calibration windows. Default: 128.")
@click.option("--sequence-length", type=int, help="Tokens in a window. Default: 512.")
@click.option("--num-ranges", type=int, help="Independent ranges of blocks. Default: 1.")
@click.option("--seed", type=int, help="Chooses the calibration windows. Default: 0.")
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
    help="Keep the steps' files here, for other runs. Default: a folder beside the output, "
    "removed when the run is done.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output folder.")
def quantize(
    model_path: str,
    output_path: Path,
    config: str | None,
    device: str,
    validate: bool,
    gpus: int,
    store: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Quantize a model with one command.

    Writes a folder that vLLM serves: weights, config.json with quantization_config, tokenizer,
    vllm_config.json, and a report as quantization_report.json and .html.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    from quantlib.evaluation.engines import choose_engine
    from quantlib.manager import QuantizationManager
    from quantlib.preflight import input_problems, output_problems
    from quantlib.store import LocalStore

    recipe = build_recipe(config, options)
    output_path = output_path.absolute()
    folder = store or output_path.with_name(f".{output_path.name}.quantlib")
    if validate:
        choose_engine(recipe.validation.engine, gpus=gpus)
    elif gpus > 1:
        raise InvalidInputError.one("--gpus", "is for validation only", "add --validate")
    problems = output_problems(output_path, overwrite=overwrite)
    problems += input_problems(recipe, model_path, str(folder), gpus)
    if problems:
        raise InvalidInputError(problems)
    existed = folder.exists()
    manager = QuantizationManager(recipe, model_path, LocalStore(folder), device, gpus)
    try:
        result = manager.quantize(validated=validate)
        manager.save(result, output_path)
    except InvalidInputError:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if store is None:
        shutil.rmtree(folder)
    report = result.report
    sizes = report.sizes
    click.echo(
        f"{output_path}: {sizes.bytes_original / 1e6:.0f} MB -> "
        f"{sizes.bytes_quantized / 1e6:.0f} MB"
    )
    click.echo(f"report: {output_path / 'quantization_report.html'}")
    if report.calibration is not None and report.calibration.shipped:
        click.echo("calibrated on the text that ships; give --calibration-dataset for your own")
    click.echo(f"serve:  quantlib deploy --model-path {output_path}")
    if report.verdict.outcome == "failed":
        raise GateFailedError(report.verdict.reason)


_PATHS = {
    "method": ("quantization", "method"),
    "bits": ("quantization", "weights", "bits"),
    "group_size": ("quantization", "weights", "group_size"),
    "symmetric": ("quantization", "weights", "symmetric"),
    "weight_type": ("quantization", "weights", "type"),
    "activations": ("quantization", "activations"),
    "format_": ("quantization", "format"),
    "layers": ("quantization", "layers"),
    "outlier_suppression": ("outlier_suppression", "method"),
    "calibration_dataset": ("calibration", "dataset"),
    "num_samples": ("calibration", "num_samples"),
    "sequence_length": ("calibration", "sequence_length"),
    "num_ranges": ("num_ranges",),
    "seed": ("calibration", "seed"),
}
"""Where in a recipe each option of the command goes."""


def build_recipe(config: str | None, options: dict[str, Any]) -> Recipe:
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
    for name, value in options.items():
        if value is None:
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
    return parse_recipe(data, origin=config or "options")
