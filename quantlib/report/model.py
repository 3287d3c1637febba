"""The quantization report as typed data. The format is described in docs/formats/report.md."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, field_validator

from quantlib.errors import InvalidInputError
from quantlib.models.layout import without_expert
from quantlib.report.evaluation import Evaluation
from quantlib.report.method import ForeignMethod, Method
from quantlib.report.part import Part
from quantlib.report.texts_read import CalibrationText
from quantlib.runtime.foreign_json import parse_json
from quantlib.runtime.pydantic_faults import faults_of
from quantlib.search.outcome import Outcome
from quantlib.store.receipt import Digest, FileRecord
from quantlib.tasks.outcome import TasksOutcome
from quantlib.verdicts import Outcome as Judged

SCHEMA: Final = "quantlib/report/1"
JSON_NAME = "quantization_report.json"
HTML_NAME = "quantization_report.html"


class Verdict(Part):
    """What the gate said, in a word and in a sentence."""

    outcome: Judged | Literal["not_validated"]
    reason: str

    @field_validator("outcome", mode="before")
    @classmethod
    def _of_earlier_reports(cls, value: Any) -> Any:
        return "regression" if value == "failed" else value

    @property
    def refused(self) -> bool:
        """Whether the gate judged it and did not let it pass."""
        return self.outcome not in ("passed", "not_validated")


class Model(Part):
    """The model that was quantized.

    Attributes:
        name: Short name, fit for a folder.
        model_type: As in ``config.json``.
        source: Where it came from, with the commit or digest that it was resolved to.
        digest: Of its content.
        bytes: Of its weights as fetched.
        tensors: How many it holds.
        blocks: How many decoder blocks it has.
        quantized_blocks: Which of them were quantized; the others are exact.
        carried: How many tensors transformers has no module for, by the part that they are of:
            layers that draft tokens, heads of rewards. They are in the checkpoint bit for bit.
    """

    name: str
    model_type: str
    source: dict[str, Any]
    digest: Digest
    bytes: int
    tensors: int
    blocks: int
    quantized_blocks: tuple[int, ...]
    carried: dict[str, int] = {}  # noqa: RUF012 - pydantic copies it


class PartSize(Part):
    """What is stored of a part of the model, scales and zero points included."""

    part: Annotated[
        str,
        Field(description="A kind of linears; embeddings, head, towers, draft layers or others."),
    ]
    scheme: Annotated[str, Field(description="Its name, and the size of groups; or exact.")]
    linears: Annotated[int, Field(description="Linears that are quantized.")]
    weights: int
    bytes: int

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.bytes / self.weights if self.weights else float("nan")


class Sizes(Part):
    """Bytes of the weights before and after, and of every file of the checkpoint."""

    bytes_original: int
    bytes_quantized: int
    files: dict[str, FileRecord]
    parts: Annotated[
        tuple[PartSize, ...],
        Field(description="Empty of a checkpoint that was made elsewhere, or before these were."),
    ] = ()

    @property
    def linear_bits(self) -> float | None:
        """Bits per weight of all linears that are quantized; None where that is not known."""
        quantized = [part for part in self.parts if part.linears]
        weights = sum(part.weights for part in quantized)
        return 8 * sum(part.bytes for part in quantized) / weights if weights else None

    @property
    def bits(self) -> float | None:
        """Bits per weight of the whole model; None where that is not known."""
        weights = sum(part.weights for part in self.parts)
        return 8 * sum(part.bytes for part in self.parts) / weights if weights else None

    @property
    def ratio(self) -> float:
        """How many times smaller the quantized weights are."""
        return self.bytes_original / self.bytes_quantized if self.bytes_quantized else float("nan")


class LinearError(Part):
    """What quantizing one linear cost.

    Attributes:
        block: Index of its block.
        linear: Its name within the block.
        relative_error: Energy of the output error over the energy of the output, on the
            calibration inputs; None where the method looks at no inputs.
        relative_weight_error: The same of the weight itself.
        damping: Share of the Hessian's mean diagonal that was added to it; None without a Hessian.
        damping_attempts: How many dampings were tried; above 1, the first was too little.
        expert: Which expert of a mixture it belongs to; None outside of experts.
        expert_tokens: Calibration tokens that were routed to the expert; None outside of experts
            and where the method looks at no inputs.
        calibrated_on: Those tokens, or all that enter the mixture, since they are too few.
        expert_kinds: Where they are too few, how many of them are of each kind of document.
    """

    block: int
    linear: str
    relative_error: float | None
    relative_weight_error: float
    damping: float | None
    damping_attempts: int
    expert: int | None = None
    expert_tokens: int | None = None
    calibrated_on: Literal["routed", "all"] | None = None
    expert_kinds: dict[str, int] | None = None

    @property
    def line(self) -> str:
        """Its name, which it shares with the same linear of the block's other experts."""
        return self.linear if self.expert is None else without_expert(self.linear)

    @property
    def damping_rose(self) -> bool:
        """Whether the factorization failed before it succeeded."""
        return self.damping_attempts > 1


class StepRun(Part):
    """One step that led to the checkpoint, and what its run took.

    Attributes:
        range: The blocks of a quantize step, such as ``8:16``.
        part: What else a step that runs several times ran for: a task and whose answers, a text.
        seconds: Wall-clock time of the run that committed it; None where it was not recorded.
        peak_mib: Largest resident memory of its process; None where it was not recorded.
        remarks: Sentences on that run.
    """

    step: str
    range: str | None
    part: str = ""
    seconds: float | None
    peak_mib: float | None
    remarks: tuple[str, ...] = ()


class StepReceipt(Part):
    """Where a step's receipt is in the store, and what it must be.

    Attributes:
        code: Version and digest of the code that did the step, by package.
        image: The container image that did it; None outside a container.
        hardware: What it computed on.
    """

    step: str
    key: str
    digest: Digest
    code: dict[str, str]
    image: str | None
    hardware: str | None


class Provenance(Part):
    """What the checkpoint was made of, by digest.

    Attributes:
        image: The container image that wrote the report; None outside a container.
        receipts: Every step that the checkpoint rests on, the earliest first.
    """

    checkpoint_digest: Digest
    model_digest: Digest
    calibration_digest: Digest | None
    recipe_digest: Digest
    image: str | None
    receipts: tuple[StepReceipt, ...]


class Report(Part):
    """Everything that is known of a quantized checkpoint, the verdict first.

    Attributes:
        serve: The arguments of vLLM that serve the checkpoint well.
        tasks: What came of the tasks that both models were given, where any were asked for.
        search: What a search found, where one chose the schemes.
        removed: What named code on a hub in the original's configs, and was left out.
        longest_path_seconds: Time of the slowest chain of steps: what the run takes when all that
            can run at once does. None where a step's time was not recorded.
    """

    schema_: Annotated[Literal["quantlib/report/1"], Field(alias="schema")] = SCHEMA
    verdict: Verdict
    model: Model
    method: Method | ForeignMethod
    sizes: Sizes
    evaluation: Evaluation | None
    tasks: TasksOutcome | None = None
    calibration: CalibrationText | None
    linears: tuple[LinearError, ...]
    steps: tuple[StepRun, ...]
    longest_path_seconds: float | None
    serve: dict[str, Any]
    removed: tuple[str, ...] = ()
    search: Outcome | None = None
    versions: dict[str, str]
    recipe: dict[str, Any]
    provenance: Provenance

    def to_json(self) -> bytes:
        """The report as indented JSON."""
        return self.model_dump_json(by_alias=True, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes | str, origin: str = JSON_NAME) -> Report:
        """Reads a report.

        Raises:
            InvalidInputError: ``data`` is no report of this schema.
        """
        try:
            return cls.model_validate(parse_json(data, origin))
        except ValidationError as error:
            raise InvalidInputError.one(origin, f"is no valid report: {faults_of(error)}") from None
