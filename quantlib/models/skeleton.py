"""A model of transformers without its weights: modules on the meta device, by the config alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from quantlib.errors import InvalidInputError
from quantlib.models.config_fields import field_problems
from quantlib.models.experts import EXPERTS_FUNCTION, is_experts, prepare_experts

_REMOTE = "its code is not part of transformers"
_CLASSIFIES = re.compile(r"For(\w*Classification|QuestionAnswering|MultipleChoice)$")


class NotWalkableError(InvalidInputError):
    """transformers has no forward for a model that could be walked."""


class Skeleton:
    """The modules of a model.

    Attributes:
        model: The whole model; a module's parameters are on the meta device until they are read.
        blocks: Its decoder blocks.
        prefix: What the names of the blocks' modules start with: ``model.layers.``.
        field_problems: Fields of the config that nobody knows.
        experts: The modules with all experts of a mixture, by block and name within the block.
    """

    def __init__(self, config: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> None:
        """Builds the modules.

        Args:
            config: The parsed ``config.json``.
            dtype: The dtype of the parameters.

        Raises:
            NotWalkableError: transformers does not know the model, or it has no decoder blocks.
        """
        own, model_class = _classes(config)
        self.field_problems = list(field_problems(config, own))
        settings: dict[str, Any] = {"dtype": dtype, "experts_implementation": EXPERTS_FUNCTION}
        text = own.get_text_config(decoder=True)
        if getattr(text, "attn_logit_softcapping", None):
            settings["attn_implementation"] = "eager"  # torch's fused attention caps no scores
        try:
            with torch.device("meta"):
                self.model = model_class._from_config(own, **settings).eval()
        except Exception as error:
            raise NotWalkableError.one(
                "config.json", f"transformers cannot build {model_class.__name__}: {error}"
            ) from error
        self.model.requires_grad_(False)
        self.config = self.model.config
        self.text_config = self.config.get_text_config(decoder=True)
        self.blocks = self._find_blocks()
        self.prefix = self._name_of(self.blocks) + "."
        self.experts: dict[int, dict[str, Any]] = {}
        for index, block in enumerate(self.blocks):
            found = {name: module for name, module in block.named_modules() if is_experts(module)}
            for name, module in found.items():
                prepare_experts(module, index, name)
            self.experts[index] = found

    @property
    def base(self) -> nn.Module:
        """The model without its head."""
        return self.model.base_model

    @property
    def embedding(self) -> str:
        """The name of the module that embeds tokens."""
        return self._name_of(self.model.get_input_embeddings())

    @property
    def head(self) -> str | None:
        """The name of the module that gives the logits."""
        head = self.model.get_output_embeddings()
        return None if head is None else self._name_of(head)

    def compute_buffers(self, index: int, device: torch.device) -> None:
        """Computes the buffers of a block that no checkpoint holds, as transformers does."""
        block = self.blocks[index]
        if not any(buffer.device.type == "meta" for buffer in block.buffers()):
            return
        for module in block.modules():
            allocate_buffers(module, device)
        self.initialize(index)

    def initialize(self, index: int) -> None:
        """Fills what of a block is not marked as filled, as its family does.

        Modules around the block are initialized too: some reach into their blocks.
        """
        from transformers import PreTrainedModel

        prefix = f"{self.prefix}{index}."
        owners = [
            module
            for name, module in self.model.named_modules()
            if isinstance(module, PreTrainedModel) and (not name or prefix.startswith(f"{name}."))
        ]
        for module in (*reversed(owners), *self.blocks[index].modules()):
            owners[-1]._init_weights(module)

    def _find_blocks(self) -> nn.ModuleList:
        count = getattr(self.text_config, "num_hidden_layers", None)
        # Where a block holds two of what the first field counts, the second counts blocks.
        counts = {count, getattr(self.text_config, "num_layers", None)} - {None, 0}
        lists = [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) in counts
        ]
        if lists:  # a tower may have as many blocks: text's lie where tokens are embedded
            return min(lists, key=lambda each: _steps_between(each[0], self.embedding))[1]
        raise NotWalkableError.one(
            "config.json",
            f"{type(self.model).__name__} has no list of {count} decoder blocks",
            "add an adapter that finds them: docs/extension_guide.md",
        )

    def _name_of(self, wanted: nn.Module) -> str:
        return next(name for name, module in self.model.named_modules() if module is wanted)


def _steps_between(name: str, other: str) -> int:
    """How many modules one leaves and enters on the way from one module to another."""
    one, two = name.split("."), other.split(".")
    pairs = zip(one, two, strict=False)
    together = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return len(one) + len(two) - 2 * together


def allocate_buffers(module: nn.Module, device: torch.device) -> None:
    """Gives a module's own buffers memory, where they have none."""
    for name, buffer in list(module._buffers.items()):
        if buffer is not None and buffer.device.type == "meta":
            module._buffers[name] = torch.empty_like(buffer, device=device)


def free(module: nn.Module) -> None:
    """Frees the parameters and buffers of a module and of those within it."""
    for inner in module.modules():
        for name, parameter in list(inner._parameters.items()):
            if parameter is not None and parameter.device.type != "meta":
                inner._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)
        for name, buffer in list(inner._buffers.items()):
            if buffer is not None and buffer.device.type != "meta":
                inner._buffers[name] = buffer.to("meta")


def _classes(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The config and the class of the model that transformers has for a ``config.json``."""
    import transformers
    from transformers import PreTrainedConfig
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = config.get("model_type")
    names = [name for name in config.get("architectures") or () if isinstance(name, str)]
    if model_type not in CONFIG_MAPPING:
        # A family that computes as another names that one's class, which is what vLLM looks at.
        classes = [getattr(transformers, name, None) for name in names]
        types = (getattr(each, "config_class", None) for each in classes)
        model_type = next((each.model_type for each in types if each is not None), model_type)
    if model_type not in CONFIG_MAPPING:
        known = f"transformers {transformers.__version__} does not know {model_type!r}"
        if "auto_map" in config:
            known += f", and {_REMOTE}"
        raise NotWalkableError.one("config.json: model_type", known)
    fields = {key: value for key, value in config.items() if key != "quantization_config"}
    fields["model_type"] = model_type
    try:
        own = CONFIG_MAPPING[model_type].from_dict(PreTrainedConfig._decode_special_floats(fields))
    except Exception as error:
        raise NotWalkableError.one("config.json", f"transformers refuses it: {error}") from error
    if getattr(own, "is_encoder_decoder", False):
        raise NotWalkableError.one(
            "config.json: model_type",
            f"{model_type!r} is an encoder and a decoder, which cannot be walked",
        )
    if classifier := next(filter(_CLASSIFIES.search, names), None):
        raise NotWalkableError.one(
            "config.json: architectures", f"{classifier} classifies and gives no logits of tokens"
        )
    for mapping in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    ):
        found = mapping.get(model_type)
        names += [found] if isinstance(found, str) else list(found or ())
    generative = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
    for name in names:
        model_class = getattr(transformers, name, None)
        if model_class is not None and name.endswith(generative):
            return own, model_class
    raise NotWalkableError.one(
        "config.json: architectures",
        f"transformers has no class of {model_type!r} that gives logits (looked at "
        f"{', '.join(names) or 'none'})",
    )
