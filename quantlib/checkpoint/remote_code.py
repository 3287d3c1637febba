"""What in a model's configs names code to be loaded from a hub, which no checkpoint of ours does.

Whoever serves with ``--trust-remote-code`` would run code that nobody fetched, digested or signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "custom_generate", "trust_remote_code"})
"""The keys that transformers and vLLM follow to code, wherever in a config they stand."""


def is_config(name: str) -> bool:
    """Whether a file is a config: of the model, its tokenizer, its processor or its generation."""
    return name.endswith("config.json")


def without_code(name: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A config without what names code.

    Args:
        name: The file.
        config: Its content.

    Returns:
        The rest, and what was left out: ``config.json: auto_map``.
    """
    removed: list[str] = []

    def rest(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            removed.extend(f"{name}: {path}{key}" for key in value if key in CODE_KEYS)
            return {
                key: rest(each, f"{path}{key}.")
                for key, each in value.items()
                if key not in CODE_KEYS
            }
        if isinstance(value, list):
            return [rest(each, f"{path}{index}.") for index, each in enumerate(value)]
        return value

    return rest(config, ""), removed
