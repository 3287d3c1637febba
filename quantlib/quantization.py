"""The section ``quantization`` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from quantlib.budget import parse_budget
from quantlib.scheme_rules import (
    DEFAULT_CANDIDATES,
    SchemeRule,
    candidate_rule,
    checked_pattern,
)
from quantlib.schemes import (
    Activations,
    AskedWeights,
    CacheScheme,
    KVCache,
    LinearScheme,
    WeightScheme,
    checked_activations,
)
from quantlib.section import Section


class AskedQuantization(Section):
    """The algorithm, the representation and what it applies to."""

    method: Annotated[
        str, Field(description="A registered quantizer: awq, gptq, hqq, minmax, ...")
    ] = "gptq"
    weights: AskedWeights = AskedWeights()
    activations: Annotated[
        Activations,
        Field(
            description="none; int8 or fp8 with one dynamic scale per token; fp8-group with one "
            "per token and 128 channels, mxfp4 and mxfp8 per token and 32; int8-static and "
            "fp8-static with one scale per linear, from calibration; nvfp4 with one per token and "
            "16 channels, under one number per linear, from calibration."
        ),
    ] = "none"
    schemes: Annotated[
        tuple[SchemeRule, ...],
        Field(
            description="Rules by which linears are represented in another way than weights and "
            "activations say, or stay exact: the first one that names a linear decides."
        ),
    ] = ()
    budget: Annotated[
        str | None,
        Field(
            description="What the checkpoint may take: 4.5bits per weight of the blocks' linears, "
            "6.2GB in all, or kl=0.02, the KL divergence that is predicted. Linears that no rule "
            "names then get the schemes among candidates that cost least for it, in the place of "
            "weights and activations. Default: nothing is searched."
        ),
    ] = None
    candidates: Annotated[
        tuple[SchemeRule, ...],
        Field(
            description="With a budget: what linears may become, NAME or NAME:GROUP_SIZE; an open "
            "size stands for 128, 64 and 32, where they go. Default: W4A16, W8A16, exact."
        ),
    ] = ()
    searched: Annotated[
        str | None,
        Field(description="What wrote the rules of schemes, where a search did: its receipt."),
    ] = None
    kv_cache: Annotated[
        KVCache,
        Field(
            description="What keys and values are kept in when the model is served: none for the "
            "model's dtype; fp8 with one scale per layer for each; fp8-head with one per head. "
            "Scales come from calibration. For compressed-tensors."
        ),
    ] = "none"
    attention: Annotated[
        Literal["none", "fp8"],
        Field(
            description="fp8: queries have scales, too, as many as keys, for kernels that attend "
            "in FP8. Needs kv_cache."
        ),
    ] = "none"
    format: Annotated[
        str | None,
        Field(
            description="How the checkpoint is written: awq, gptq or compressed-tensors. Default: "
            "the format named like the method where there is one that can hold the scheme, else "
            "compressed-tensors."
        ),
    ] = None
    layers: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...] | None,
        Field(description="Blocks to quantize, by index; the others stay exact. Default: all."),
    ] = None
    ignore: Annotated[
        tuple[str, ...],
        Field(
            description="Linears that stay exact: the last part of a name (down_proj), a full "
            "name, or re: and a regular expression on the full name. The head and the embeddings "
            "are quantized only where a rule of schemes names them."
        ),
    ] = ()
    draft_layers: Annotated[
        bool,
        Field(
            description="Whether linears of layers that draft tokens (MTP) are rounded too, "
            "without calibration; their experts stay exact. For compressed-tensors."
        ),
    ] = False
    options: Annotated[
        dict[str, Any],
        Field(description="Settings of the method; its class documents and checks them."),
    ] = {}  # noqa: RUF012 - pydantic copies it

    _check_activations = field_validator("activations")(checked_activations)

    @model_validator(mode="before")
    @classmethod
    def _default_candidates(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("budget") and not data.get("candidates"):
            return {**data, "candidates": DEFAULT_CANDIDATES}
        return data

    @field_validator("budget")
    @classmethod
    def _readable_budget(cls, value: str | None) -> str | None:
        if value is not None:
            parse_budget(value)
        return value

    @field_validator("candidates", mode="before")
    @classmethod
    def _named_candidates(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [candidate_rule(each) if isinstance(each, str) else each for each in value]
        return value

    @field_validator("candidates")
    @classmethod
    def _for_all_linears(cls, value: tuple[SchemeRule, ...]) -> tuple[SchemeRule, ...]:
        if any(not rule.names_all for rule in value):
            raise ValueError("candidates are for all linears; rules of schemes name some")
        return value

    @model_validator(mode="after")
    def _candidates_of_a_search(self) -> AskedQuantization:
        if self.candidates and self.budget is None:
            raise ValueError("candidates are what a search chooses from; give a budget as well")
        return self

    @property
    def cache(self) -> CacheScheme | None:
        """How keys and values are kept; None for the dtype of the model."""
        if self.kv_cache == "none":
            return None
        return CacheScheme(per_head=self.kv_cache == "fp8-head", queries=self.attention == "fp8")

    @field_validator("layers")
    @classmethod
    def _sorted_layers(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and not value:
            raise ValueError("names no block; leave it out to quantize all of them")
        return None if value is None else tuple(sorted(set(value)))

    @field_validator("ignore")
    @classmethod
    def _regular_expressions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(checked_pattern, value))


class QuantizationSection(AskedQuantization):
    """The same with the size of groups settled: what quantizers and formats are given."""

    weights: WeightScheme = WeightScheme()

    @field_validator("schemes")
    @classmethod
    def _settled(cls, value: tuple[SchemeRule, ...]) -> tuple[SchemeRule, ...]:
        for rule in value:
            if rule.leaves_size_open and rule.group_size == "auto":
                raise ValueError(f"the size of the groups of {rule.scheme} is not settled")
        return value

    @property
    def own(self) -> LinearScheme:
        """The scheme that ``weights`` and ``activations`` state."""
        return LinearScheme(weights=self.weights, activations=self.activations)

    @property
    def rest(self) -> LinearScheme | None:
        """The scheme of linears that no rule before the first one for all linears names.

        None where they stay exact.
        """
        for rule in self.schemes:
            if rule.names_all:
                return rule.linear_scheme()
        return self.own

    def stated_schemes(self) -> dict[str, LinearScheme]:
        """All schemes that linears may get, by the field that states each, rules first.

        Of a candidate with an open size the one with the largest groups.
        """
        stated, all_named = {}, False
        for number, rule in enumerate(self.schemes):
            scheme = rule.linear_scheme()
            if scheme is not None and (rule.outer or not all_named):
                stated[f"quantization.schemes.{number}"] = scheme
            all_named = all_named or rule.names_all
        if all_named:
            return stated
        if self.budget is None:
            return stated | {"quantization": self.own}
        for number, rule in enumerate(self.candidates):
            size = 128 if rule.group_size == "auto" else rule.group_size
            if (scheme := rule.model_copy(update={"group_size": size}).linear_scheme()) is not None:
                stated[f"quantization.candidates.{number}"] = scheme
        return stated

    def of_scheme(self, scheme: LinearScheme) -> QuantizationSection:
        """The section for linears of one scheme."""
        return self.model_copy(
            update={
                "weights": scheme.weights,
                "activations": scheme.activations,
                "schemes": (),
                "budget": None,
                "candidates": (),
            }
        )
