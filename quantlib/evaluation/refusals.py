"""What an engine says when it refuses a model, in one line."""

from __future__ import annotations

import traceback


def in_words(error: Exception) -> str:
    """An exception in one line, without what pydantic says of itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(line for line in lines if not line.startswith("For further information"))
    text = text.partition(" [type=")[0]
    if not text:
        frames = traceback.extract_tb(error.__traceback__)
        text = ": ".join([type(error).__name__, *(frame.line or "" for frame in frames[-1:])])
    return ", ".join([text.removesuffix("."), *getattr(error, "__notes__", ())])
