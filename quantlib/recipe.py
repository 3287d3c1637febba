"""The recipe: everything that decides what a quantized checkpoint will be.

Unknown keys are refused, and every field has a documented default. Whether what is asked for goes
together is a question for :mod:`quantlib.checks`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from quantlib.quantization import AskedQuantization, QuantizationSection
from quantlib.section import Section
from quantlib.task_section import TasksSection

SHIPPED_RECIPES = Path(__file__).parent / "recipes"

_Split = Annotated[str, Field(description="Split of a data set on the hub.")]
_TextField = Annotated[
    str | None,
    Field(
        description="Field or column that holds the text or the messages of a row. Default: the "
        "first of text, messages, conversations, instruction and output, prompt and completion."
    ),
]


Content = Literal["auto", "text", "conversations"]
_Content = Annotated[
    Content,
    Field(
        description="How documents are written: conversations through the model's chat "
        "template, and no other rows; text without it, messages one below the other; auto: "
        "conversations through the template where the model has one, text as it is."
    ),
]
_DocumentEnd = Annotated[
    str,
    Field(
        min_length=1,
        description="The token behind each document: auto for the one that the model was "
        "trained to read there, none, or a token.",
    ),
]


class CalibrationSection(Section):
    """The text that the model is calibrated on."""

    dataset: Annotated[
        str | None,
        Field(
            description="A .jsonl, .json, .parquet, .csv or .txt file, each also .gz or .zst, a "
            "folder of them, s3://bucket/prefix, hf://datasets/org/name@revision/path, or the name "
            "of a data set on the hub (name, or name:config), or shipped:NAME. Default: "
            "shipped:calibration, text and conversations that come with quantlib."
        ),
    ] = None
    split: _Split = "train"
    text_field: _TextField = None
    content: _Content = "auto"
    document_end: _DocumentEnd = "auto"
    num_samples: Annotated[int, Field(ge=1, description="Token windows to calibrate on.")] = 128
    sequence_length: Annotated[int, Field(ge=8, description="Tokens in a window.")] = 512
    seed: Annotated[int, Field(ge=0, description="Decides which windows are taken.")] = 0
    min_expert_tokens: Annotated[
        int,
        Field(
            ge=1,
            description="An expert that fewer calibration tokens are routed to is calibrated on "
            "all tokens that enter its mixture, and reported.",
        ),
    ] = 256


class OutlierSuppressionSection(Section):
    """A transformation that makes the model easier to quantize without changing its function."""

    method: Annotated[str, Field(description="A registered suppressor: smooth_quant.")] = (
        "smooth_quant"
    )
    options: Annotated[
        dict[str, Any],
        Field(description="Settings of the suppressor; its class documents and checks them."),
    ] = {}  # noqa: RUF012 - pydantic copies it


class Thresholds(Section):
    """What a quantized checkpoint may lose before the gate refuses it.

    What is left open is decided by the scheme and the model's size: docs/gate.md has the table.
    """

    max_perplexity_increase: Annotated[
        float | None,
        Field(gt=0, le=10, description="Relative: 0.15 allows 15 % more than the original's."),
    ] = None
    max_kl_mean: Annotated[
        float | None,
        Field(
            gt=0,
            le=20,
            description="Mean KL divergence from the original, in nats. Where it is given, plain "
            "rounding is looked at only if max_times_rounding is given too.",
        ),
    ] = None
    min_top1_agreement: Annotated[
        float | None,
        Field(gt=0, lt=1, description="Share of positions whose most likely token is the same."),
    ] = None
    max_times_rounding: Annotated[
        float | None,
        Field(
            gt=0,
            le=100,
            description="Mean KL divergence over that of rounding to nearest in the same scheme.",
        ),
    ] = None
    max_undercalibrated_experts: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of the quantized experts that fewer than "
            "calibration.min_expert_tokens were routed to.",
        ),
    ] = 0.25


class ValidationSection(Section):
    """How the merged checkpoint is judged."""

    engine: Annotated[
        Literal["vllm", "transformers"], Field(description="What loads and runs both models.")
    ] = "vllm"
    reference: Annotated[
        Literal["auto", "engine", "streamed"],
        Field(
            description="How the original is read: by the engine, which holds it whole, or "
            "streamed block by block through transformers' modules, so that only the quantized "
            "model has to fit the GPUs; prompts are then completed by that one alone. auto: by the "
            "engine, unless plan finds that no node holds it."
        ),
    ] = "auto"
    dataset: Annotated[
        str | None,
        Field(
            description="Held-out text, named as calibration.dataset is. Default: "
            "shipped:evaluation, which shares no source with shipped:calibration."
        ),
    ] = None
    split: _Split = "test"
    text_field: _TextField = None
    content: _Content = "auto"
    document_end: _DocumentEnd = "auto"
    num_samples: Annotated[
        int,
        Field(
            ge=1,
            description="Token windows to judge on at first. Twice as many are taken, and again, "
            "while the error of measurement leaves it open whether a limit is met.",
        ),
    ] = 8
    max_samples: Annotated[
        int,
        Field(
            ge=1,
            description="Token windows to judge on at most, as far as the text goes; what is still "
            "open then is inconclusive, and is not published.",
        ),
    ] = 64
    sequence_length: Annotated[int, Field(ge=8, description="Tokens in a window.")] = 512
    prompts: Annotated[
        tuple[str, ...], Field(description="Completed greedily by both models, side by side.")
    ] = (
        "The capital of France is",
        "Water boils at a temperature of",
        "The three primary colours are",
    )
    max_new_tokens: Annotated[
        int, Field(ge=1, le=4096, description="Tokens that a prompt is completed with.")
    ] = 32
    answer_tokens: Annotated[
        int,
        Field(
            ge=0,
            le=32768,
            description="Tokens of an answer at most. Both models answer four questions, rendered "
            "by the chat template; answers that say nothing, go round in circles or leave "
            "thinking open, where the original's do not, break a checkpoint. 0: none are asked "
            "for.",
        ),
    ] = 256
    thresholds: Thresholds = Thresholds()


class PublishSection(Section):
    """Where a checkpoint that passed goes."""

    destination: Annotated[
        str | None,
        Field(
            description="A folder, s3://bucket/prefix, oci://registry/repository[:tag] or "
            "hf://org/name. Default: `published` beside the store."
        ),
    ] = None
    base_image: Annotated[
        str | None,
        Field(
            pattern=r"^oci://",
            description="Of an oci:// destination: the image whose layers lie below the "
            "checkpoint's. KServe's default for images needs one with a shell; image volumes do "
            "not.",
        ),
    ] = None
    name: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
            description="What the model is called there. Default: the name of its hub repository, "
            "else its model type.",
        ),
    ] = None


class ServingSection(Section):
    """Where the checkpoint will be served, as far as it limits how it can be quantized."""

    tensor_parallel_size: Annotated[
        int,
        Field(
            ge=1,
            description="GPUs that share the served model. A model or scheme that cannot be cut "
            "into so many parts, at the borders of its groups, is refused.",
        ),
    ] = 1


class AskedRecipe(Section):
    """What is asked for: everything that decides, on a model, what its checkpoint will be."""

    model: Annotated[
        str | None,
        Field(
            description="A folder, a .gguf file, hf://org/name@revision, or s3://bucket/prefix. "
            "May be left out and given on the command line."
        ),
    ] = None
    quantization: AskedQuantization = AskedQuantization()
    calibration: CalibrationSection = CalibrationSection()
    outlier_suppression: Annotated[
        OutlierSuppressionSection | Literal["auto"] | None,
        Field(
            description="auto: smooth_quant with alpha auto where a method that calibrates rounds "
            "inputs to FP4 and the model has a place for the scales, without a budget; otherwise "
            "none. null: none."
        ),
    ] = "auto"
    num_ranges: Annotated[
        int,
        Field(ge=1, le=64, description="Ranges of blocks that are quantized independently."),
    ] = 1
    validation: ValidationSection = ValidationSection()
    tasks: TasksSection = TasksSection()
    serving: ServingSection = ServingSection()
    publish: PublishSection = PublishSection()

    @field_validator("outlier_suppression", mode="wrap")
    @classmethod
    def _one_fault(cls, value: object, handler: ValidatorFunctionWrapHandler) -> object:
        if isinstance(value, Mapping):  # its faults alone, not one of each type that it may have
            return OutlierSuppressionSection.model_validate(value)
        try:
            return handler(value)
        except ValidationError:
            raise ValueError("must be auto, null or a section") from None

    def canonical_json(self) -> str:
        """The recipe with every default filled in; equal recipes give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """``sha256:`` and the hexadecimal digest of :meth:`canonical_json`."""
        return "sha256:" + hashlib.sha256(self.canonical_json().encode()).hexdigest()


class Recipe(AskedRecipe):
    """What is done to a model: nothing is left for its shapes to decide.

    :func:`quantlib.checks.group_size.settle` makes one of what is asked for.
    """

    quantization: QuantizationSection = QuantizationSection()
    outlier_suppression: OutlierSuppressionSection | None = None
