"""The registry of model families, by the ``model_type`` of their ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from quantlib.errors import InvalidInputError
from quantlib.registry import Registry

if TYPE_CHECKING:
    from quantlib.models.adapter import BaseModelAdapter

Adapter = TypeVar("Adapter", bound="BaseModelAdapter")

_GUIDE = "docs/extension_guide.md"


class ModelRegistry(Registry[type["BaseModelAdapter"]]):
    """Adapter classes by model type, for the families that need one of their own."""

    _default: type[BaseModelAdapter]

    def register_default(self, adapter: type[Adapter]) -> type[Adapter]:
        """Takes the decorated class for model types that have none of their own."""
        self._default = adapter
        return adapter

    def get_adapter(self, model_type: str) -> type[BaseModelAdapter]:
        """The adapter class of a model type: the default where it has none of its own."""
        return self.get(model_type) if model_type in self else self._default

    def adapter_of(self, config: Mapping[str, Any]) -> type[BaseModelAdapter]:
        """The adapter class of a model, by its config.

        Raises:
            InvalidInputError: The config names no model type.
        """
        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            raise InvalidInputError.one("config.json: model_type", "is missing")
        return self.get_adapter(model_type)


model_registry = ModelRegistry(
    "model type", "quantlib.models", f"other families are added by an adapter class: {_GUIDE}"
)
