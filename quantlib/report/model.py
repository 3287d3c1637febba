"""The quantization report as typed data. The format is described in docs/formats/report.md."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantlib.errors import InvalidInputError
from quantlib.models.layout import without_expert
from quantlib.runtime.foreign_json import parse_json
from quantlib.runtime.pydantic_faults import faults_of
from quantlib.schemes import ACTIVATIONS, Activations, AskedWeights, ScaleType, WeightType, name_of
from quantlib.search.outcome import Outcome
from quantlib.store.receipt import Digest, FileRecord

SCHEMA: Final = "quantlib/report/1"
JSON_NAME = "quantization_report.json"
HTML_NAME = "quantization_report.html"


class Part(BaseModel):
    """A closed, immutable part of a report.

    A figure that is no finite number (the perplexity of a checkpoint that is broken) is written as
    the string ``NaN`` or ``Infinity``, which JSON can hold.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        protected_namespaces=(),
        ser_json_inf_nan="strings",
    )


class Verdict(Part):
    """What the gate said, in a word and in a sentence."""

    outcome: Literal["passed", "failed", "not_validated"]
    reason: str


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
    carried: dict[str, int] = {}


class Method(Part):
    """The algorithm and the representation, with every default resolved."""

    quantizer: str
    bits: int
    group_size: Annotated[int, Field(description="-1: one scale per output channel.")]
    symmetric: bool
    activations: Activations
    weight_type: WeightType
    scale: ScaleType = "model"
    block_rows: int = 1
    schemes: Annotated[
        tuple[str, ...],
        Field(
            description="What rules of the recipe say of linears; bits and the like are those of "
            "the linears that no rule names."
        ),
    ] = ()
    format: str
    kv_cache: Annotated[
        str, Field(description="What keys and values are kept in; empty for the model's dtype.")
    ] = ""
    group_size_reason: Annotated[
        str, Field(description="Why it is that, where it is what auto chooses; else empty.")
    ] = ""
    outlier_suppression: str | None
    alpha: Annotated[
        tuple[float | None, ...] | None,
        Field(
            description="Strength of the outlier suppression in each block; null for a block that "
            "is left alone. None without suppression, or where it has no strength."
        ),
    ] = None

    @property
    def scheme(self) -> str:
        """Its usual name, such as ``W4A16`` or ``NVFP4A16``; of several, all of them."""
        if self.schemes:
            return " + ".join(self.schemes)
        weights = AskedWeights(
            type=self.weight_type,
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            scale=self.scale,
            block_rows=self.block_rows,
        )
        return name_of(weights, self.activations)

    @property
    def alphas(self) -> dict[float, int]:
        """How many blocks were suppressed with each strength, the least strength first."""
        used = [alpha for alpha in self.alpha or () if alpha is not None]
        return {alpha: used.count(alpha) for alpha in sorted(set(used))}

    @property
    def details(self) -> str:
        """What its name does not say of a scheme, in words."""
        if self.schemes:
            return "by rules of the recipe"
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        if self.block_rows == -1:
            return f"per tensor, {symmetry}"
        if self.block_rows > 1:
            return f"blocks of {self.block_rows} x {self.group_size}, {symmetry}"
        shared = "per channel" if self.group_size == -1 else f"groups of {self.group_size}"
        return f"{shared}, {symmetry}"

    @property
    def in_words(self) -> str:
        """The representation: ``4-bit weights, groups of 64, symmetric; activations ...``."""
        if self.schemes:
            return f"{', '.join(self.schemes)}, {self.details}"
        rounded = ACTIVATIONS.get(self.activations)
        activations = "as in the original" if rounded is None else rounded.words
        return f"{self.bits}-bit weights, {self.details}; activations {activations}"


class ForeignMethod(Part):
    """Of a checkpoint that was made elsewhere, how its weights lie by its config, in words."""

    words: str


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


class TextRead(Part):
    """What was read of a text."""

    rows: Annotated[int, Field(description="Rows that were read before there was enough.")]
    used: Annotated[dict[str, int], Field(description="Rows by what they were recognized as.")]
    left_out: Annotated[dict[str, int], Field(description="Rows that were not used, by reason.")]
    examples: Annotated[tuple[str, ...], Field(description="The first of those.")]
    in_words: str


class CalibrationText(Part):
    """The text that the model was calibrated on."""

    source: str
    digest: Digest
    samples: int
    sequence_length: int
    tokens: int
    shipped: Annotated[bool, Field(description="It is the text that ships with quantlib.")]
    content: Annotated[Digest | None, Field(description="Digest of the text's files.")] = None
    read: TextRead | None = None
    opening: Annotated[
        tuple[str, ...], Field(description="What every window begins with: BOS, or nothing.")
    ] = ()
    with_images: Annotated[
        int, Field(description="Of the samples, those that are a row with images each.")
    ] = 0


class EvaluationText(Part):
    """The held-out text that both models were judged on."""

    source: str
    digest: Digest
    windows: int
    sequence_length: int
    tokens: int
    content: Digest | None = None
    read: TextRead | None = None
    opening: tuple[str, ...] = ()


class Performance(Part):
    """What was measured of one model."""

    perplexity: float
    tokens_per_second: float | None


class Generation(Part):
    """A prompt and its greedy completions by both models."""

    prompt: str
    original: str
    quantized: str


class Drafting(Part):
    """How many of the tokens that the model's own draft layers guess it then says.

    Attributes:
        original: Share of the original's drafts that it accepts; None where nothing was drafted.
        quantized: The same of the quantized model.
        drafts: How many the quantized model's layers made, each one token ahead.
        refused: Why nothing was drafted; None where it was.
    """

    original: float | None
    quantized: float | None
    drafts: int
    refused: str | None


class Probe(Part):
    """A place in the held-out text where the quantized model is sure of the next token.

    Attributes:
        window: Index of the window.
        position: The window's tokens before it are what the token follows.
        token: The most likely one, by at least a nat.
    """

    window: int
    position: int
    token: int


class Check(Part):
    """One threshold of the gate."""

    name: str
    value: float
    limit: float
    passed: bool


class Gate(Part):
    """The gate's verdict and what it rests on."""

    passed: bool
    checks: tuple[Check, ...]
    reason: str


class Evaluation(Part):
    """The quantized model against the original: the content of ``evaluation.json``.

    Attributes:
        fallback_reason: Why another engine judged than the recipe asked for; None where it did.
        dequantized_reason: Why an original that is quantized itself was judged by what its weights
            stand for, and not as it is served; None where it was judged as it is.
        checkpoint_dequantized_reason: The same of the quantized model, and what that leaves open.
        checkpoint_emulated_reason: Why the quantized model was computed by emulation, without a
            figure for speed; None where it was not.
        kl_mean: Mean KL divergence of the quantized from the original model, in nats.
        kl_method: Which positions and which part of the vocabulary ``kl_mean`` covers.
        top1_agreement: Share of positions whose most likely token is the same.
        drafting: None where the model has no layers that draft tokens.
        probes: What a server of the quantized model can be asked for; None in reports from before
            there were any.
    """

    engine: str
    engine_version: str
    device: str
    fallback_reason: str | None
    dequantized_reason: str | None = None
    checkpoint_dequantized_reason: str | None = None
    checkpoint_emulated_reason: str | None = None
    text: EvaluationText
    original: Performance
    quantized: Performance
    kl_mean: float
    kl_standard_error: float
    kl_method: str
    top1_agreement: float
    drafting: Drafting | None = None
    probes: tuple[Probe, ...] | None = None
    generations: tuple[Generation, ...]
    gate: Gate

    @property
    def perplexity_increase(self) -> float:
        """Relative: 0.1 is 10 % above the original's."""
        return self.quantized.perplexity / self.original.perplexity - 1


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
        seconds: Wall-clock time of the run that committed it; None where it was not recorded.
        peak_mib: Largest resident memory of its process; None where it was not recorded.
        remarks: Sentences on that run.
    """

    step: str
    range: str | None
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
