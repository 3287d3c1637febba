"""Tokens of documents, one behind the other, and the windows that are cut of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BETWEEN = -1
"""The kind of tokens that were put between documents, or before a window."""

_MOST_KINDS = 32
_OTHER_KINDS = "others"


class Stream:
    """Tokens of documents, one behind the other, and the kind of each.

    Attributes:
        kinds: Their indices by name.
        length: How many tokens there are.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, int] = {}
        self.length = 0
        self._parts: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
        self._labels: list[np.ndarray] = [np.empty(0, dtype=np.int32)]

    def add(self, ids: np.ndarray, kind: str | None) -> None:
        """Adds tokens, of a kind of documents or, where that is None, between documents."""
        label = BETWEEN
        if kind is not None:
            known = kind in self.kinds or len(self.kinds) < _MOST_KINDS
            label = self.kinds.setdefault(kind if known else _OTHER_KINDS, len(self.kinds))
        self._parts.append(ids)
        self._labels.append(np.full(len(ids), label, dtype=np.int32))
        self.length += len(ids)

    def windows(self, length: int, opening: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows ``[windows, length]`` that begin with ``opening``, and the kinds of their tokens.

        Where the stream goes on with it, or with its end, as at the start of a document, it is not
        put there twice.
        """
        stream, labels = np.concatenate(self._parts), np.concatenate(self._labels)
        put = np.full(len(opening), BETWEEN, dtype=np.int32)
        windows: list[np.ndarray] = []
        kinds: list[np.ndarray] = []
        at = 0
        while True:
            there = _shared(opening, stream[at : at + len(opening)])
            added = len(opening) - there
            end = at + length - added
            if end > len(stream):
                break
            windows.append(np.concatenate([opening[:added], stream[at:end]]))
            kinds.append(np.concatenate([put[:added], labels[at:end]]))
            at = end
        return (
            np.array(windows, dtype=np.int64).reshape(-1, length),
            np.array(kinds, dtype=np.int32).reshape(-1, length),
        )


def count_by_kind(kinds: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """How many tokens are of each kind, those with most first, none of those without.

    Args:
        kinds: int32, of any shape; indices of ``names``, or :data:`BETWEEN`.
        names: The kinds.
    """
    counts = np.bincount(kinds[kinds != BETWEEN].ravel(), minlength=len(names)).tolist()
    ordered = sorted(zip(names, counts, strict=True), key=lambda each: -each[1])
    return {name: count for name, count in ordered if count}


def _shared(first: np.ndarray, second: np.ndarray) -> int:
    """How many of the last of one are the first of the other, at most."""
    counts = range(min(len(first), len(second)), 0, -1)
    return next((n for n in counts if np.array_equal(first[-n:], second[:n])), 0)
