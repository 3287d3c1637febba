"""The steps of the pipeline in order, on one machine and in one process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlib.checks.group_size import settle
from quantlib.checks.model import sharing_problems
from quantlib.checks.recipe import parse_recipe
from quantlib.checks.scheme import provisional_section, resolve_format
from quantlib.checks.suppression import possible_suppression
from quantlib.errors import InvalidInputError
from quantlib.evaluation.judging import not_by_kernels
from quantlib.formats import format_registry
from quantlib.outlier_suppression import outlier_suppression_registry
from quantlib.output import write_checkpoint
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import quantizer_registry
from quantlib.recipe import AskedRecipe, Recipe, ValidationSection
from quantlib.report.build import build_report
from quantlib.report.model import Report
from quantlib.sources.naming import named
from quantlib.steps.adopt import adopt
from quantlib.steps.calibrate import calibrate
from quantlib.steps.choose import choose_schemes, searched_recipe
from quantlib.steps.fetch import fetch
from quantlib.steps.layout import open_receipt
from quantlib.steps.measure import measure
from quantlib.steps.merge import merge
from quantlib.steps.plan import plan
from quantlib.steps.quantize import quantize
from quantlib.steps.smooth import smooth
from quantlib.steps.tasks import tasks
from quantlib.steps.texts import bring_texts, make_all_windows
from quantlib.steps.validate import read_evaluation, validate
from quantlib.store import Receipt, Store, commit_step


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
        recipe: What was asked for.
        source: The model: a folder, a ``.gguf`` file, or ``hf://org/name@revision``.
        store: Where the steps' files go. What is committed there already is not done again.
        device: auto, cpu or cuda.
        gpus: What validation spreads a model over.
    """

    def __init__(
        self, recipe: AskedRecipe, source: str, store: Store, device: str = "auto", gpus: int = 1
    ) -> None:
        self.recipe = recipe
        self.source = source
        self.store = store
        self.device = device
        self.gpus = gpus
        self._init_components()

    def _init_components(self) -> None:
        """Looks every part up, so that an unknown one is refused before any work.

        Raises:
            UnknownNameError: A registry does not know a name of the recipe.
        """
        section = provisional_section(self.recipe.quantization)
        quantizer_registry.get_quantizer(section.method)(section)
        format_registry.get_format(resolve_format(section))
        suppression = possible_suppression(self.recipe)
        if suppression is not None:
            outlier_suppression_registry.get_suppressor(suppression.method)(suppression.options)

    def quantize(self, *, validated: bool = False) -> QuantizationResult:
        """Quantizes the model.

        Args:
            validated: Whether to compare the checkpoint with the original as well.

        Raises:
            QuantlibError: Input was refused, or a step failed; committed steps stay committed.
        """
        store, device = self.store, self.device
        texts = bring_texts(store, self.recipe, validated=validated)
        model = fetch(store, self.source, tokenizer=bool(texts.inputs))
        recipe = settle(self.recipe, open_receipt(store, model)[1]).recipe
        if validated:
            self._require_shareable(recipe, model)
        ranges = plan(store, self.recipe, model, texts, 0, validated=validated)
        if validated:
            self._say_what_is_judged(recipe, model)
        calibration = calibrate(store, recipe, model, ranges, device)
        if recipe.quantization.budget is not None:
            measured = [
                measure(store, recipe, block_range, model, calibration, device)
                for block_range in ranges.facts["ranges"]
            ]
            recipe = searched_recipe(recipe, choose_schemes(store, recipe, model, measured))
        smoothing = smooth(store, recipe, model, calibration)
        quantized = [
            quantize(store, recipe, block_range, model, calibration, smoothing, device)
            for block_range in ranges.facts["ranges"]
        ]
        checkpoint = merge(store, recipe, model, quantized)
        if not validated:
            return QuantizationResult(
                checkpoint, build_report(store, recipe, checkpoint, None, planned=ranges)
            )
        validation = validate(store, recipe, model, ranges, checkpoint, device, self.gpus)
        outcome = tasks(store, recipe, model, texts, checkpoint, device, self.gpus)
        evaluation = read_evaluation(store, validation)
        report = build_report(store, recipe, checkpoint, evaluation, validation, ranges, outcome)
        return QuantizationResult(checkpoint, report)

    def _say_what_is_judged(self, recipe: Recipe, model: Receipt) -> None:
        _, adapter = open_receipt(self.store, model)
        section, engine = recipe.quantization, recipe.validation.engine
        how = not_by_kernels(section, adapter, engine, self.device)
        if how is not None:
            print(f"the checkpoint will be {how}", file=sys.stderr, flush=True)

    def _require_shareable(self, recipe: Recipe, model: Receipt) -> None:
        _, adapter = open_receipt(self.store, model)
        problems = sharing_problems(recipe.quantization, adapter, self.gpus, "gpus")
        if problems:
            raise InvalidInputError(problems)

    def save(self, result: QuantizationResult, output: Path) -> None:
        """Writes the checkpoint folder, ``config.json`` last.

        Args:
            result: What :meth:`quantize` returned.
            output: The folder to write. A checkpoint that quantlib wrote there is replaced;
                anything else is refused, and stays.

        Raises:
            QuantlibError: The folder holds something else, or a file of the store is damaged.
            OSError: There is no room, or no permission.
        """
        write_checkpoint(self.store, result.checkpoint, result.report, output)


def judge_checkpoints(
    section: ValidationSection,
    checkpoints: Sequence[str],
    original: str,
    store: Store,
    device: str = "auto",
    gpus: int = 1,
) -> tuple[Report, ...]:
    """Judges quantized checkpoints that are there already, as the validate step judges.

    All are held against one original on one text. None is judged before all were found to be
    checkpoints of it.

    Args:
        section: What to judge by.
        checkpoints: Folders, ``hf://org/name@revision``, or ``s3://bucket/prefix``.
        original: What they were made of, as :func:`quantlib.steps.fetch.fetch` takes it.
        store: Where the steps' files go. The original's half is found there by the next
            checkpoint of it.
        device: auto, cpu or cuda.
        gpus: What each model is spread over.

    Returns:
        A report of each checkpoint, in their order.

    Raises:
        QuantlibError: Input was refused, or an engine failed.
    """
    # minmax looks at no text, so that no other than the held-out one is asked for.
    quantization = QuantizationSection(method="minmax")
    plain = named(Recipe(quantization=quantization, validation=section), original)
    texts = bring_texts(store, plain)
    model = fetch(store, original)
    opened = open_receipt(store, model)
    windows, problems = make_all_windows(store, plain, texts, *opened)
    if problems:
        raise InvalidInputError(problems)
    windowed = commit_step(store, "windowed", {}, windows, lambda output: None)
    found = [(checkpoint, *adopt(store, checkpoint, model)) for checkpoint in checkpoints]
    reports = []
    for checkpoint, adopted, made in found:
        recipe = plain
        if made is not None:
            asked = parse_recipe(made.recipe | {"validation": section.model_dump(mode="json")})
            recipe = settle(asked, opened[1]).recipe
            _say_whether_made_of(checkpoint, made, model)
        validation = validate(store, recipe, model, windowed, adopted, device, gpus)
        evaluation = read_evaluation(store, validation)
        reports.append(build_report(store, recipe, adopted, evaluation, validation))
    return tuple(reports)


def _say_whether_made_of(checkpoint: str, made: Report, model: Receipt) -> None:
    if made.provenance.model_digest != model.facts["digest"]:
        print(
            f"note: the report of {checkpoint} says that it was made of "
            f"{made.provenance.model_digest}; what it is judged against is "
            f"{model.facts['digest']}",
            file=sys.stderr,
            flush=True,
        )
