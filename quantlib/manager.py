"""The steps of the pipeline in order, on one machine and in one process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.compatibility import exact_linears, needs_calibration, resolve_format
from quantlib.errors import Problem
from quantlib.formats import format_registry
from quantlib.models import model_registry
from quantlib.outlier_suppression import outlier_suppression_registry
from quantlib.quantizers import quantizer_registry
from quantlib.recipe import Recipe
from quantlib.report.build import build_report
from quantlib.report.html import render_html
from quantlib.report.model import HTML_NAME, JSON_NAME, Report
from quantlib.sources import FolderAddress, parse_address, source_problems
from quantlib.steps.calibrate import calibrate
from quantlib.steps.fetch import fetch
from quantlib.steps.merge import merge
from quantlib.steps.plan import input_problems, plan
from quantlib.steps.quantize import quantize
from quantlib.steps.smooth import smooth
from quantlib.steps.validate import read_evaluation, validate
from quantlib.store import Receipt, Store


@dataclass(frozen=True)
class QuantizationResult:
    """What quantizing a model gave.

    Attributes:
        checkpoint: Receipt of the merge step.
        report: What was done, and how good it is.
    """

    checkpoint: Receipt
    report: Report


class QuantizationManager:
    """Runs fetch, plan, calibrate, smooth, quantize and merge; validate on request.

    Attributes:
        recipe: What to do.
        source: The model: a folder, a ``.gguf`` file, or ``hf://org/name@revision``.
        store: Where the steps' files go. What is committed there already is not done again.
        device: auto, cpu or cuda.
    """

    def __init__(self, recipe: Recipe, source: str, store: Store, device: str = "auto") -> None:
        self.recipe = recipe
        self.source = source
        self.store = store
        self.device = device
        self._init_components()

    def _init_components(self) -> None:
        """Looks every part up, so that an unknown one is refused before any work.

        Raises:
            UnknownNameError: A registry does not know a name of the recipe.
        """
        section = self.recipe.quantization
        quantizer_registry.get_quantizer(section.method)(section)
        format_registry.get_format(resolve_format(section))
        suppression = self.recipe.outlier_suppression
        if suppression is not None:
            outlier_suppression_registry.get_suppressor(suppression.method)(suppression.options)

    def quantize(self, *, validated: bool = False) -> QuantizationResult:
        """Quantizes the model.

        Args:
            validated: Whether to compare the checkpoint with the original as well.

        Raises:
            QuantlibError: Input was refused, or a step failed; committed steps stay committed.
        """
        store, recipe, device = self.store, self.recipe, self.device
        model = fetch(store, self.source)
        ranges = plan(store, recipe, model, 0)
        calibration = calibrate(store, recipe, model, ranges, device)
        smoothing = smooth(store, recipe, model, calibration)
        quantized = [
            quantize(store, recipe, block_range, model, calibration, smoothing, device)
            for block_range in ranges.facts["ranges"]
        ]
        checkpoint = merge(store, recipe, model, quantized)
        if not validated:
            return QuantizationResult(checkpoint, build_report(store, recipe, checkpoint, None))
        validation = validate(store, recipe, model, checkpoint, device)
        evaluation = read_evaluation(store, validation)
        report = build_report(store, recipe, checkpoint, evaluation, validation)
        return QuantizationResult(checkpoint, report)

    def save(self, result: QuantizationResult, output: Path) -> None:
        """Writes the checkpoint folder: complete, or not at all.

        Args:
            result: What :meth:`quantize` returned.
            output: The folder to write; one that is there is replaced.
        """
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            partial.chmod(0o755)
            for name in result.checkpoint.facts["checkpoint_files"]:
                self.store.export_file(result.checkpoint.path(name), partial / name)
            (partial / JSON_NAME).write_bytes(result.report.to_json())
            (partial / HTML_NAME).write_text(render_html(result.report), encoding="utf-8")
            if output.exists():
                replaced = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
                os.rename(output, replaced / "old")
                os.rename(partial, output)
                shutil.rmtree(replaced)
            else:
                os.rename(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def preflight(
    recipe: Recipe, source: str, output: Path, store: Path, *, overwrite: bool
) -> list[Problem]:
    """Everything that can be found wrong before anything is written.

    A model on the hub and a GGUF file are checked further when they have been fetched.

    Args:
        recipe: What to do.
        source: The model.
        output: The folder to write.
        store: The folder of the store.
        overwrite: Whether the output folder may be replaced.
    """
    problems = output_problems(output, overwrite=overwrite)
    problems += _writable_problems(store)
    faults = source_problems(source)
    problems += faults
    if faults:
        return problems
    address = parse_address(source)
    if isinstance(address, FolderAddress):
        files = FolderSource(address.path)
        faults = input_problems(recipe, files)
        problems += faults
        if not faults:
            problems += _space_problems(recipe, Checkpoint.open(files), store)
    return problems


def output_problems(output: Path, *, overwrite: bool) -> list[Problem]:
    """Why a folder cannot become the output."""
    if output.is_file() or (output.exists() and not output.is_dir()):
        return [Problem(str(output), "is there and is no folder", "choose another")]
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        return [Problem(str(output), "is not empty", "choose another, or give --overwrite")]
    return _writable_problems(output)


def _writable_problems(folder: Path) -> list[Problem]:
    ancestor = _existing_ancestor(folder.absolute().parent)
    if not ancestor.is_dir():
        return [Problem(str(folder), f"{ancestor} is no folder", "choose another")]
    if not os.access(ancestor, os.W_OK | os.X_OK):
        return [Problem(str(folder), f"no permission to write in {ancestor}", "choose another")]
    return []


def _existing_ancestor(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _space_problems(recipe: Recipe, checkpoint: Checkpoint, store: Path) -> list[Problem]:
    needed = required_bytes(recipe, checkpoint)
    ancestor = _existing_ancestor(store.absolute())
    free = shutil.disk_usage(ancestor).free
    if free >= needed:
        return []
    return [
        Problem(
            str(store),
            f"needs about {needed / 1e9:.1f} GB, but {ancestor} has {free / 1e9:.1f} GB free",
            "make room, or choose another folder with --store",
        )
    ]


def required_bytes(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """About how much a run writes, the model itself (linked, not copied) left out."""
    section = recipe.quantization
    adapter = model_registry.adapter_for(checkpoint.config)
    total = sum(info.bytes for info in checkpoint.tensors.values())
    codes = 0
    for block, exact in enumerate(exact_linears(section, adapter)):
        for linear in _without(adapter.linears(), exact):
            info = checkpoint.info(f"{adapter.linear_name(block, linear)}.weight")
            total -= info.bytes
            codes += info.elements * section.weights.bits // 8
    hidden = 0
    if needs_calibration(recipe):
        tokens = recipe.calibration.num_samples * recipe.calibration.sequence_length
        hidden = recipe.num_ranges * tokens * checkpoint.config["hidden_size"] * 4
    # A spool of the file in the making, and scales and zero points beside the codes.
    return 2 * (total + codes * 5 // 4) + hidden


def _without(names: Sequence[str], left_out: set[str]) -> list[str]:
    return [name for name in names if name not in left_out]
