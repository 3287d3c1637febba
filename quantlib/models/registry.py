"""The registry of model families, by the ``model_type`` of their ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantlib.errors import InvalidInputError
from quantlib.registry import Registry

if TYPE_CHECKING:
    from quantlib.models.base import BaseModelAdapter


_GUIDE = "docs/extension_guide.md"


class ModelRegistry(Registry[type["BaseModelAdapter"]]):
    """Adapter classes by model type."""

    def get_adapter(self, model_type: str) -> type[BaseModelAdapter]:
        """The adapter class of a model type.

        Raises:
            UnknownNameError: No adapter knows it; the error lists the known types.
        """
        return self.get(model_type)

    def adapter_for(self, config: Mapping[str, Any]) -> BaseModelAdapter:
        """The adapter of a model, by its config.

        Raises:
            UnknownNameError: No adapter knows the model type.
            InvalidInputError: The config names none, is that of a multimodal model, or asks for
                what the adapter cannot do.
        """
        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            raise InvalidInputError.one("config.json: model_type", "is missing")
        text = config.get("text_config")
        if isinstance(text, Mapping) and model_type not in self:
            raise InvalidInputError.one(
                "config.json: model_type",
                f"{model_type!r} takes in more than text",
                f"give its language model ({text.get('model_type')}) as a checkpoint of its own, "
                f"or add an adapter: {_GUIDE}",
            )
        return self.get_adapter(model_type)(config)


model_registry = ModelRegistry(
    "model type", "quantlib.models", f"other families are added by an adapter class: {_GUIDE}"
)
