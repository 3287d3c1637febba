"""Calls what goes through the whole stack from a stack that is short."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def shallowly(function: Callable[..., _Result], *arguments: Any, **options: Any) -> _Result:
    """Calls a function in a thread of its own.

    For every setting of a task kfp calls ``inspect.stack()``, which looks for the module of each
    frame among all that are imported: from the depth of pytest, beside transformers, that takes
    seconds for a pipeline.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments, **options).result()
