"""From pieces of documents to tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from quantlib.text.documents import Piece
from quantlib.text.formats import cut_before

_CUT_CHARACTERS = 1 << 11


class Encoder:
    """Tokens of pieces, with a document's special tokens around its first and last one.

    Libraries take more time for a character the longer a text is, so that pieces are cut further,
    between words, where the tokens are the same.

    Attributes:
        opening: What the tokenizer puts before a text: BOS, or nothing.
        closing: What it puts behind one: EOS, or nothing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        whole, bare = self._ids("a", special=True), self._ids("a")
        before = _position(whole, bare)
        self.opening = np.asarray(whole[:before], dtype=np.int64)
        self.closing = np.asarray(whole[before + len(bare) :], dtype=np.int64)
        # Tokenizers that put a space before every text are not given that of the second word.
        first, both = self._ids("word"), self._ids("word more")
        self._left_out = int(first + self._ids(" more") != both)
        self._cuts = first + self._ids(" more"[self._left_out :]) == both

    def __call__(self, piece: Piece) -> np.ndarray:
        """The tokens of a piece, int64 ``[tokens]``."""
        text = piece.text
        if not piece.opens and text.startswith(" "):
            text = text[self._left_out :]
        if piece.plain and piece.opens and piece.closes and len(text) <= _CUT_CHARACTERS:
            return np.asarray(self._ids(text, special=True), dtype=np.int64)
        parts = [np.asarray(self._ids(part), dtype=np.int64) for part in self._parts(text)]
        if piece.plain and piece.opens:
            parts.insert(0, self.opening)
        if piece.plain and piece.closes:
            parts.append(self.closing)
        return np.concatenate(parts)

    def _parts(self, text: str) -> Iterator[str]:
        at = 0
        while self._cuts and len(text) - at > _CUT_CHARACTERS:
            cut = cut_before(text, at + _CUT_CHARACTERS, _CUT_CHARACTERS // 2)
            if cut == at + _CUT_CHARACTERS:
                break
            yield text[at:cut]
            at = cut + self._left_out
        yield text[at:]

    def _ids(self, text: str, special: bool = False) -> list[int]:
        # Without offsets, which take more time the longer a text is.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids


def _position(whole: list[int], part: list[int]) -> int:
    starts = range(len(whole) - len(part) + 1)
    return next((at for at in starts if whole[at : at + len(part)] == part), 0)
