"""The project's documents, and the code blocks in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        *(
            page
            for folder in ("docs", "components", "manifests")
            for page in (ROOT / folder).rglob("*.md")
        ),
    ]
)
_BLOCK = re.compile(r"^```([\w-]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        language: What stands behind the fence.
        text: The code.
        before: The text between the block before it, or the start, and this one.
    """

    language: str
    text: str
    before: str


def blocks(document: Path) -> list[Block]:
    """The code blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    found, end = [], 0
    for match in _BLOCK.finditer(text):
        found.append(Block(match[1], match[2], text[end : match.start()]))
        end = match.end()
    return found
