"""Puts a report together from the receipts of the steps."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from quantlib.checks.scheme import resolve_format
from quantlib.errors import InvalidInputError, StoreError
from quantlib.recipe import Recipe
from quantlib.report.evaluation import Evaluation
from quantlib.report.method import ForeignMethod, Method
from quantlib.report.model import (
    LinearError,
    Model,
    Provenance,
    Report,
    Sizes,
    StepReceipt,
    StepRun,
    Verdict,
)
from quantlib.report.texts_read import CalibrationText
from quantlib.runtime.pydantic_faults import faults_of
from quantlib.runtime.surroundings import image, package_versions
from quantlib.scheme_rules import EXACT
from quantlib.search.outcome import Outcome
from quantlib.store import Receipt, Store, read_lineage, run_facts
from quantlib.tasks.outcome import TasksOutcome
from quantlib.verdicts import Outcome as Judged
from quantlib.verdicts import worst

LINEARS_NAME = "linears.json"
TASKS_NAME = "tasks.json"
SEARCH_NAME = "search.json"
NOT_VALIDATED = "The checkpoint was not compared with the original model."


def build_report(
    store: Store,
    recipe: Recipe,
    checkpoint: Receipt,
    evaluation: Mapping[str, Any] | None,
    validation: Receipt | None = None,
    planned: Receipt | None = None,
    tasks: Receipt | None = None,
) -> Report:
    """The report of a checkpoint.

    Args:
        store: Where the steps' files are.
        recipe: What the checkpoint was made by.
        checkpoint: The merge step's receipt.
        evaluation: Content of ``evaluation.json``; None where nobody compared the models.
        validation: The validate step's receipt, where that step is done.
        planned: The plan step's receipt, where it is at hand: the checkpoint does not rest on it.
        tasks: The tasks step's receipt, where that step is done.

    Raises:
        InvalidInputError: A step recorded something that is no part of a report.
        StoreError: A receipt or a file of a step is missing or damaged.
    """
    lineage = read_lineage(store, validation or checkpoint)
    outcome = None
    if tasks is not None and tasks.facts["tasks"]:
        outcome = TasksOutcome.model_validate(read_json(store, tasks, TASKS_NAME))
        lineage = joined(read_lineage(store, tasks), lineage)
    steps = {receipt.step: receipt for receipt in lineage}
    ran = (
        lineage if planned is None or planned in lineage else [*lineage[:1], planned, *lineage[1:]]
    )
    ran = _in_order(ran)
    runs = {receipt.digest(): run_facts(store, receipt) for receipt in ran}
    try:
        judged = None if evaluation is None else Evaluation.model_validate(evaluation)
        calibration = _calibration(steps.get("calibrate") or checkpoint)
        method = _method(recipe, steps.get("smooth"), checkpoint)
        return Report(
            verdict=_verdict(judged, outcome),
            model=_model(recipe, steps["fetch"], checkpoint),
            method=method,
            sizes=Sizes(
                bytes_original=checkpoint.facts["bytes_original"],
                bytes_quantized=checkpoint.facts["bytes_quantized"],
                files={
                    name: checkpoint.files[name] for name in checkpoint.facts["checkpoint_files"]
                },
                parts=tuple(checkpoint.facts.get("parts", ())),
            ),
            evaluation=judged,
            tasks=outcome,
            calibration=calibration,
            linears=tuple(
                LinearError.model_validate(record)
                for record in read_json(store, checkpoint, LINEARS_NAME)
            ),
            steps=tuple(_step_run(receipt, runs[receipt.digest()]) for receipt in ran),
            longest_path_seconds=_longest_path_seconds(lineage, runs),
            serve=checkpoint.facts["serve"],
            removed=checkpoint.facts["removed"],
            search=_search(store, steps.get("choose")),
            versions=package_versions(),
            recipe=recipe.model_dump(
                mode="json", include={"validation"} if isinstance(method, ForeignMethod) else None
            ),
            provenance=Provenance(
                checkpoint_digest=checkpoint.facts["checkpoint_digest"],
                model_digest=steps["fetch"].facts["digest"],
                calibration_digest=calibration.digest if calibration else None,
                recipe_digest=recipe.digest(),
                image=image(),
                receipts=tuple(
                    StepReceipt(
                        step=receipt.step,
                        key=receipt.key,
                        digest=receipt.digest(),
                        code=receipt.code,
                        image=receipt.made_by.image,
                        hardware=receipt.numerics.get("hardware") or receipt.made_by.hardware,
                    )
                    for receipt in lineage
                ),
            ),
        )
    except KeyError as error:
        raise InvalidInputError.one(
            f"checkpoint {checkpoint.key[:12]}", f"its steps recorded no {error}"
        ) from None
    except ValidationError as error:
        raise InvalidInputError.one(
            f"checkpoint {checkpoint.key[:12]}",
            f"its steps recorded no valid report: {faults_of(error)}",
        ) from None


def joined(receipts: Iterable[Receipt], others: Iterable[Receipt]) -> list[Receipt]:
    """Two lineages as one, each receipt once and after what it rests on."""
    return list({each.digest(): each for each in (*receipts, *others)}.values())


def read_json(store: Store, receipt: Receipt, name: str) -> Any:
    """The content of a small JSON file of a step, verified against its receipt.

    Raises:
        KeyError: The step wrote no such file.
        StoreError: The file is missing or is not what the receipt says.
    """
    path = receipt.path(name)
    data = bytes(store.read(path))
    if hashlib.sha256(data).hexdigest() != receipt.files[name].sha256:
        raise StoreError(store.full_address(path), "its sha256 is not the receipt's")
    return json.loads(data)


def model_name(fetched: Mapping[str, Any]) -> str:
    """A name for the model that is fit for a folder, from the fetch step's facts.

    The source's own name, else the last part of its repository's, else the model type.
    """
    source = fetched["source"]
    name = source.get("name") or str(source.get("repo") or "").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or fetched["model_type"]


def _verdict(evaluation: Evaluation | None, tasks: TasksOutcome | None) -> Verdict:
    if evaluation is None:
        return Verdict(outcome="not_validated", reason=NOT_VALIDATED)
    gate = evaluation.gate
    earlier: Judged = "passed" if gate.passed else "regression"
    outcome, reason = gate.outcome or earlier, gate.reason
    if tasks is not None:
        outcome, reason = worst((outcome, tasks.verdict)), f"{reason}; tasks: {tasks.reason}"
    return Verdict(outcome=outcome, reason=reason)


def _search(store: Store, chosen: Receipt | None) -> Outcome | None:
    if chosen is None:
        return None
    return Outcome.model_validate(read_json(store, chosen, SEARCH_NAME))


def _calibration(calibrated: Receipt) -> CalibrationText | None:
    """The text that was used; a method that looks at no inputs leaves none."""
    text = calibrated.facts.get("text")
    return CalibrationText.model_validate(text) if text else None


def _model(recipe: Recipe, fetched: Receipt, checkpoint: Receipt) -> Model:
    return Model(
        name=recipe.publish.name or model_name(fetched.facts),
        model_type=fetched.facts["model_type"],
        source=fetched.facts["source"],
        digest=fetched.facts["digest"],
        bytes=fetched.facts["bytes"],
        tensors=fetched.facts["tensors"],
        blocks=checkpoint.facts["blocks"],
        quantized_blocks=tuple(checkpoint.facts["quantized_blocks"]),
        carried=checkpoint.facts.get("carried", {}),
    )


def _method(
    recipe: Recipe, smoothed: Receipt | None, checkpoint: Receipt
) -> Method | ForeignMethod:
    if told := checkpoint.facts.get("method"):  # a checkpoint that was there already
        return Method(**told) if "quantizer" in told else ForeignMethod(**told)
    method = method_of(recipe, smoothed)
    return method.model_copy(update={"group_size_reason": checkpoint.facts.get("group_size", "")})


def method_of(recipe: Recipe, smoothed: Receipt | None = None) -> Method:
    """The method of a recipe, with every default resolved.

    Args:
        recipe: What is done.
        smoothed: The smooth step's receipt, which knows the strength in each block.
    """
    quantization, suppression = recipe.quantization, recipe.outlier_suppression
    stated = dict.fromkeys(each.words for each in quantization.stated_schemes().values())
    return Method(
        quantizer=quantization.method,
        bits=quantization.weights.bits,
        group_size=quantization.weights.group_size,
        symmetric=quantization.weights.symmetric,
        activations=quantization.activations,
        weight_type=quantization.weights.type,
        scale=quantization.weights.scale,
        block_rows=quantization.weights.block_rows,
        schemes=(tuple(stated) or (EXACT,)) if quantization.schemes else (),
        format=resolve_format(quantization),
        kv_cache=quantization.cache.words if quantization.cache else "",
        outlier_suppression=suppression.method if suppression else None,
        alpha=smoothed.facts.get("alpha") if smoothed else None,
    )


def _in_order(receipts: list[Receipt]) -> list[Receipt]:
    """The earliest steps first, and the ranges of a step as they follow one another."""
    first = {receipt.step: number for number, receipt in reversed(list(enumerate(receipts)))}

    def place(receipt: Receipt) -> tuple[int, int]:
        start = str(receipt.parameters.get("range", "")).partition(":")[0]
        return first[receipt.step], int(start) if start.isdecimal() else 0

    return sorted(receipts, key=place)


def _part(receipt: Receipt) -> str:
    """What a step that runs several times ran for, where that is no range."""
    parameters = receipt.parameters
    match receipt.step:
        case "answers":
            return f"{parameters['task']}, {_whose(receipt)}, seed {parameters['seed']}"
        case "loads":
            return _whose(receipt)
        case "text":
            return str(parameters["name"])
        case _:
            return ""


def _whose(receipt: Receipt) -> str:
    return "original" if receipt.inputs["model"].step == "fetch" else "quantized"


def _step_run(receipt: Receipt, run: Mapping[str, Any]) -> StepRun:
    return StepRun(
        step=receipt.step,
        range=receipt.parameters.get("range"),
        part=_part(receipt),
        seconds=run.get("seconds"),
        peak_mib=run.get("peak_mib"),
        remarks=tuple(run.get("remarks", ())),
    )


def _longest_path_seconds(
    lineage: list[Receipt], runs: Mapping[str, Mapping[str, Any]]
) -> float | None:
    """Seconds of the slowest chain of steps, each waiting for its inputs only."""
    finished: dict[str, float] = {}
    for receipt in lineage:  # inputs come before the steps that read them
        seconds = runs[receipt.digest()].get("seconds")
        if seconds is None:
            return None
        ready = max((finished[read.digest] for read in receipt.inputs.values()), default=0.0)
        finished[receipt.digest()] = ready + seconds
    return round(max(finished.values()), 3)
