"""What a module of attention hands over: queries, keys and values as they are attended to.

transformers lets the function that attends be chosen by name (``AttentionInterface``), and nearly
every family calls it with its module, the queries, and the keys and values that a cache keeps:
after rotary embedding and norms, before heads are repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

Handed = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor] | None]
"""Given queries ``[samples, heads, tokens, width]``, keys and values ``[samples, key-value heads,
tokens, width]``; gives others in their place, or None."""

_ATTRIBUTE = "quantlib_handed"


class Handle:
    """Ends what :func:`at_attention` began."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def remove(self) -> None:
        """Lets the module attend as it does by itself."""
        self._module.__dict__.pop(_ATTRIBUTE, None)


def at_attention(module: nn.Module, handed: Handed) -> Handle:
    """Lets a function see, and replace, what a module hands over whenever it attends.

    Args:
        module: Any module; one that never attends is left alone.
        handed: The function.
    """
    if not hasattr(AttentionInterface.get_interface, "__wrapped__"):
        AttentionInterface.get_interface = _seeing(AttentionInterface.get_interface)
    module.__dict__[_ATTRIBUTE] = handed
    return Handle(module)


def _seeing(get_interface: Callable[..., Any]) -> Callable[..., Any]:
    """The look-up of the function that attends, which then asks the module's own."""

    @wraps(get_interface)
    def look_up(self: AttentionInterface, *arguments: Any, **options: Any) -> Callable[..., Any]:
        attend = get_interface(self, *arguments, **options)

        def see(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any
        ) -> Any:
            handed: Handed | None = module.__dict__.get(_ATTRIBUTE)
            given = (query, key, value)
            if handed is not None:
                given = handed(*given) or given
            return attend(module, *given, *rest, **more)

        return see

    return look_up
