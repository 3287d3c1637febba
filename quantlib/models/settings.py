"""What a family's config says of a block's arithmetic, beside its weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Norms:
    """The norms on a block's residual stream, by where they stand; None where there is none.

    Attributes:
        before_attention: Of the attention's input.
        after_attention: Of its output, before that is added to the residual stream.
        before_mlp: Of the MLP's input.
        after_mlp: Of its output.
        offset: What is added to the stored weights of every norm, those of queries and keys
            included.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    offset: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Those that there are, in the order of computation."""
        places = (self.before_attention, self.after_attention, self.before_mlp, self.after_mlp)
        return tuple(name for name in places if name is not None)


@dataclass(frozen=True)
class BlockSettings:
    """The numbers that a block is computed with.

    Attributes:
        heads: Query heads.
        key_value_heads: Key and value heads.
        head_dim: Channels of a head.
        score_scale: Factor on the attention scores.
        activation: Name of the MLP's activation.
        norm_eps: Added to the mean square within the norms.
        norms: The norms on the residual stream.
        sliding_window: Tokens that the attention reaches back, or None for all of them.
        score_softcap: The attention scores are bent to stay within plus and minus this; None
            leaves them.
        residual_multiplier: Factor on what the attention and the MLP add to the residual stream.
    """

    heads: int
    key_value_heads: int
    head_dim: int
    score_scale: float
    activation: str
    norm_eps: float
    norms: Norms = Norms()
    sliding_window: int | None = None
    score_softcap: float | None = None
    residual_multiplier: float = 1.0
