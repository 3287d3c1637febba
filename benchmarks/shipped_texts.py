"""The texts that figures are measured on, and what the texts that ship are made of.

``python benchmarks/shipped_texts.py MODEL`` prints the tokens of each kind in each text that ships,
as the model in the folder MODEL is given it, without what is put between documents.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from quantlib.checkpoint.source import FolderSource
from quantlib.recipe import Content
from quantlib.text.addresses import SHIPPED
from quantlib.text.chat_template import ChatTemplate
from quantlib.text.documents import Piece, read_documents
from quantlib.text.encoder import Encoder
from quantlib.text.files import local_file
from quantlib.text.places import SHIPPED_TEXTS
from quantlib.text.tokenizer import load_tokenizer

CALIBRATION_TEXT = {"dataset": "shipped:python-topics", "document_end": "none"}
EVALUATION_TEXT = {"dataset": "shipped:sqlite", "document_end": "none"}
"""What the tables in the documentation were measured on: they stay comparable."""

CONTENTS: tuple[Content, ...] = ("text", "auto")


def tokens_by_kind(name: str, model: FolderSource, content: Content) -> Counter[str]:
    """How many tokens of each kind a shipped text has for a model."""
    encode, counts = Encoder(load_tokenizer(model)), Counter[str]()
    file = local_file(SHIPPED_TEXTS / SHIPPED[name])
    template = ChatTemplate.of_model(model)
    for piece in read_documents([file], template=template, content=content):
        if isinstance(piece, Piece):
            counts[piece.kind] += len(encode(piece))
    return counts


def main() -> None:
    """Prints a row for each text, for text and for conversations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a model, for its tokenizer")
    model = FolderSource(parser.parse_args().model)
    for name in SHIPPED:
        for content in CONTENTS:
            counts = tokens_by_kind(name, model, content)
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
            print(f"{name}, {content}: {counts.total():,} tokens: {kinds}")


if __name__ == "__main__":
    main()
