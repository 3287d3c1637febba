"""Config files: a mapping in one of the registered formats."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import yaml

from quantlib.errors import InvalidInputError, UnknownNameError, did_you_mean
from quantlib.registry import Registry


class BaseConfigFormat(ABC):
    """A format of config files."""

    @abstractmethod
    def parse(self, text: str) -> Any:
        """What a file's text says, as dictionaries, lists, strings and numbers.

        Raises:
            ValueError: The text is not in this format.
        """


config_format_registry: Registry[type[BaseConfigFormat]] = Registry(
    "config format", "quantlib.config_formats", "it is known by the end of a file's name"
)
"""Config formats by the suffix of their files, without the dot."""


@config_format_registry.register("json")
class JsonFormat(BaseConfigFormat):
    """JSON."""

    def parse(self, text: str) -> Any:
        """Parses JSON."""
        return json.loads(text)


@config_format_registry.register("yaml", "yml")
class YamlFormat(BaseConfigFormat):
    """YAML, without tags that make objects."""

    def parse(self, text: str) -> Any:
        """Parses YAML."""
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from None


def named_file(name: Path | str, folder: Path, kind: str) -> Path:
    """A file given by its path, or by the name of one that ships.

    Args:
        name: The path, or the name without its suffix.
        folder: Holds those that ship.
        kind: What they are, for messages: ``recipe``.

    Raises:
        InvalidInputError: It is a name, and there is none of it.
    """
    path, shipped = Path(name), folder / f"{name}.yaml"
    if "/" in str(name) or path.suffix:
        return path
    if shipped.is_file():
        return shipped
    if path.is_file():
        return path
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    raise InvalidInputError.one(
        str(name),
        f"there is no such file, and no {kind} of this name ships; {', '.join(known)} do",
        did_you_mean(str(name), known),
    )


def load_config(path: Path | str) -> dict[str, Any]:
    """Reads a mapping from a file in a registered format: YAML, JSON, and those that were added.

    Raises:
        InvalidInputError: The file is missing, has an unknown suffix, cannot be parsed, or holds
            something other than a mapping.
    """
    path = Path(path)
    try:
        config_format = config_format_registry.get(path.suffix.removeprefix("."))()
    except UnknownNameError as error:
        problem = error.problems[0]
        raise InvalidInputError.one(str(path), problem.what, problem.remedy) from None
    try:
        data = config_format.parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InvalidInputError.one(str(path), f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInputError.one(str(path), f"cannot be parsed: {error}") from None
    except RecursionError:
        raise InvalidInputError.one(str(path), "is nested too deeply") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise InvalidInputError.one(str(path), "does not hold a mapping")
    return data
