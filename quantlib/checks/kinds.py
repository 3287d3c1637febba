"""What kind of linear a name stands for, for rules that are written for kinds."""

from __future__ import annotations

import re
from functools import cache

from quantlib.models.layout import ANY_EXPERT, without_expert
from quantlib.scheme_rules import LinearKind

_SHARED = re.compile(r"shared_(experts?|mlp)\b")
_LINEAR_ATTENTION = re.compile(
    r"linear_attn|delta|mamba|ssm|(short_?)?conv\b|recurrent|time_mix|"
    r"\b(in_proj\w*|x_proj|dt_proj|out_proj)$"
)
_ATTENTION = re.compile(
    r"attn|attention|"
    r"\b(q|k|v|o|qkv|kv|q_a|q_b|kv_a|kv_b|wq|wk|wv|wo|query|key|value)_?(proj\w*)?$"
)
_STATED_ATTENTION = re.compile(r"(?<!linear_)(attn|attention)\b")


def kind_of(linear: str) -> LinearKind:
    """The kind of a linear.

    The modules of layers of attention are called so in nearly all families; where a block has one
    ``mixer``, whatever it does, the linear's own name decides: ``q_proj``, ``in_proj``.

    Args:
        linear: Its name within the block: ``self_attn.q_proj``.
    """
    return _kind_of(without_expert(linear))


@cache
def _kind_of(linear: str) -> LinearKind:
    if _SHARED.search(linear):
        return "shared_experts"
    if f".{ANY_EXPERT}." in linear:
        return "experts"
    stated = _STATED_ATTENTION.search(linear) is not None
    if not stated and _LINEAR_ATTENTION.search(linear):
        return "linear_attention"
    return "attention" if _ATTENTION.search(linear) else "mlp"
