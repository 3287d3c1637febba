"""Which linears are represented how: rules, kinds of linears, and what stands for exact ones."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from quantlib.schemes import (
    SCHEMES,
    SHIPPED,
    GroupSize,
    LinearScheme,
    auto_channel_or_positive,
    checked_scheme,
)
from quantlib.section import Section

EXACT = "exact"
"""In the place of a scheme's name: not quantized."""

DEFAULT_CANDIDATES = ("W4A16", "W8A16", EXACT)
"""What a search chooses from where a recipe does not say: what every GPU of vLLM's serves."""

LinearKind = Literal["attention", "linear_attention", "mlp", "experts", "shared_experts"]

OuterKind = Literal["lm_head", "embeddings"]

OUTER_KINDS: tuple[OuterKind, ...] = get_args(OuterKind)
"""What lies outside of the blocks and is quantized where a rule names it: what gives the logits,
and the table of tokens' vectors."""


def checked_pattern(pattern: str) -> str:
    """A pattern that names linears.

    Raises:
        ValueError: It is to be a regular expression, and is none.
    """
    if pattern.startswith("re:"):
        try:
            re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


class SchemeRule(Section):
    """Which linears are represented in another way than the rest."""

    scheme: Annotated[
        str,
        Field(description=f"{', '.join(SHIPPED)}; or {EXACT}, for linears that are not quantized."),
    ]
    linears: Annotated[
        tuple[str, ...],
        Field(
            description="Which linears of a block: a kind (attention, linear_attention, mlp, "
            "experts, shared_experts), or a name as in ignore. Default: all. What lies outside of "
            "the blocks is exact unless it is named here: lm_head, embeddings."
        ),
    ] = ()
    blocks: Annotated[
        tuple[int, ...] | None,
        Field(description="Which blocks, by index; -1 is the last one. Default: all."),
    ] = None
    group_size: Annotated[
        GroupSize,
        Field(
            description="As of weights, for schemes that leave it open: W2A16, W4A16, "
            "W4A16_ASYM, W8A16, W4A8."
        ),
    ] = "auto"

    _check_size = field_validator("group_size", mode="wrap")(auto_channel_or_positive)

    @field_validator("scheme")
    @classmethod
    def _known(cls, value: str) -> str:
        return checked_scheme(value, EXACT)

    @field_validator("linears")
    @classmethod
    def _regular_expressions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(checked_pattern, value))

    @model_validator(mode="after")
    def _outside_of_blocks(self) -> SchemeRule:
        if self.blocks is not None and self.outer:
            raise ValueError(
                f"leave blocks out: {' and '.join(self.outer)} lie in no block; give them a rule "
                "of their own"
            )
        return self

    @model_validator(mode="after")
    def _only_open_sizes(self) -> SchemeRule:
        if self.group_size != "auto" and not self.leaves_size_open:
            fixed = SCHEMES.get(self.scheme, {}).get("weights", {}).get("group_size")
            if fixed != self.group_size:
                raise ValueError(
                    f"leave group_size out: {self.scheme} says itself what shares scales"
                )
        return self

    @property
    def leaves_size_open(self) -> bool:
        """Whether the scheme leaves the size of its groups to the rule."""
        return self.scheme in SCHEMES and "group_size" not in SCHEMES[self.scheme]["weights"]

    @property
    def outer(self) -> tuple[OuterKind, ...]:
        """What outside of the blocks it is for."""
        return tuple(kind for kind in OUTER_KINDS if kind in self.linears)

    @property
    def names_all(self) -> bool:
        """Whether it is for every linear, so that no rule after it is asked."""
        return not self.linears and self.blocks is None

    def linear_scheme(self) -> LinearScheme | None:
        """The scheme that the rule gives linears; None where they stay exact.

        Raises:
            ValueError: The size of groups is not settled.
        """
        if self.scheme == EXACT:
            return None
        scheme = SCHEMES[self.scheme]
        weights = {"group_size": self.group_size, **scheme["weights"]}
        return LinearScheme.model_validate({**scheme, "weights": weights})


def candidate_rule(text: str) -> dict[str, Any]:
    """The rule that a candidate's short form stands for: ``W4A16:32``."""
    name, colon, size = text.partition(":")
    rule: dict[str, Any] = {"scheme": name}
    return rule | {"group_size": int(size) if size.isdecimal() else size} if colon else rule
