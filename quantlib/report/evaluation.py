"""What judging a checkpoint gave, as typed data: the content of ``evaluation.json``."""

from __future__ import annotations

from quantlib.report.part import Part
from quantlib.report.texts_read import EvaluationText
from quantlib.verdicts import Outcome


class Performance(Part):
    """What was measured of one model."""

    perplexity: float
    tokens_per_second: float | None


class Generation(Part):
    """A prompt and its greedy completions by both models, or by the quantized one alone."""

    prompt: str
    original: str | None
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
    """One limit of the gate.

    Attributes:
        low: The figure may be as low as that; None in reports from before it was told.
        high: And as high as that.
        source: Where the limit comes from.
        outcome: passed, inconclusive or regression.
    """

    name: str
    value: float
    limit: float
    passed: bool
    low: float | None = None
    high: float | None = None
    source: str = ""
    outcome: Outcome | None = None


class Gate(Part):
    """The gate's verdict and what it rests on.

    Attributes:
        outcome: None in reports from before there were four.
        broken: What the checkpoint does that its original does not.
    """

    passed: bool
    outcome: Outcome | None = None
    checks: tuple[Check, ...]
    broken: tuple[str, ...] = ()
    reason: str


class Rounding(Part):
    """What rounding to nearest costs in the same scheme, on the same windows.

    Attributes:
        kl_mean: Mean KL divergence from the original, in nats; None where it was not measured.
        kl_standard_error: Of it.
        absent: Why it was not measured; None where it was.
    """

    kl_mean: float | None = None
    kl_standard_error: float | None = None
    absent: str | None = None


class WorstToken(Part):
    """A position at which the models differ most.

    Attributes:
        window: Index of the window.
        position: The window's tokens before it are what the token follows.
        text: What stands before it, and the token that follows in the text.
        kl: Divergence there, in nats.
    """

    window: int
    position: int
    text: str
    token: str
    kl: float


class Spread(Part):
    """How the divergence is spread over the text.

    Attributes:
        windows: Mean of each window, in nats.
        tokens: Quantiles over the positions, by the share of positions below.
        worst: The positions with most of it.
    """

    windows: tuple[float, ...]
    tokens: dict[str, float]
    worst: tuple[WorstToken, ...]


class Evaluation(Part):
    """The quantized model against the original: the content of ``evaluation.json``.

    Attributes:
        fallback_reason: Why another engine judged than the recipe asked for; None where it did.
        dequantized_reason: Why an original that is quantized itself was judged by what its weights
            stand for, and not as it is served; None where it was judged as it is.
        checkpoint_dequantized_reason: The same of the quantized model, and what that leaves open.
        checkpoint_emulated_reason: Why the quantized model was computed by emulation, without a
            figure for speed; None where it was not.
        original_streamed: In which dtypes the original was read block by block; None where the
            engine held it.
        kl_mean: Mean KL divergence of the quantized from the original model, in nats.
        kl_method: Which positions and which part of the vocabulary ``kl_mean`` covers.
        top1_agreement: Share of positions whose most likely token is the same.
        drafting: None where the model has no layers that draft tokens.
        probes: What a server of the quantized model can be asked for; None in reports from before
            there were any.
        rounding: Plain rounding beside; None where the checkpoint is that.
        spread: None in reports from before it was told.
    """

    engine: str
    engine_version: str
    device: str
    fallback_reason: str | None
    dequantized_reason: str | None = None
    checkpoint_dequantized_reason: str | None = None
    checkpoint_emulated_reason: str | None = None
    original_streamed: str | None = None
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
    rounding: Rounding | None = None
    spread: Spread | None = None
    gate: Gate

    @property
    def perplexity_increase(self) -> float:
        """Relative: 0.1 is 10 % above the original's."""
        return self.quantized.perplexity / self.original.perplexity - 1
