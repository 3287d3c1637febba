"""The registry of checkpoint formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlib.registry import Registry

if TYPE_CHECKING:
    from quantlib.formats.base import BaseFormat


class FormatRegistry(Registry[type["BaseFormat"]]):
    """Format classes by name."""

    def get_format(self, name: str) -> BaseFormat:
        """The format of that name.

        Raises:
            UnknownNameError: There is none; the error lists the known formats.
        """
        return self.get(name)()


format_registry = FormatRegistry("checkpoint format", "quantlib.formats")
