"""What judging a checkpoint gave, as typed data: the content of ``evaluation.json``."""

from __future__ import annotations

from quantlib.report.part import Part
from quantlib.report.texts_read import EvaluationText


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
