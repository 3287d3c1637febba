"""Which tensor of a checkpoint is which parameter of transformers' modules.

The rules are transformers' own (``conversion_mapping.py``): renamings, and operations that join or
split tensors. A checkpoint may have been written by any version of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from quantlib.models.layout import ANY_EXPERT
from quantlib.models.skeleton import Skeleton

_OWN_MATRIX = re.compile(
    r"(?P<module>.*experts)\.\d+\.(?P<linear>gate_proj|up_proj|down_proj)\.weight"
)
_EXPERT_NUMBER = re.compile(r"(?<=experts\.)(\d+)(?=\.)")


@dataclass
class Names:
    """The tensors behind each parameter.

    Attributes:
        renamed: The one tensor that is a parameter as it stands, by the parameter's name.
        converted: The tensors that give parameters by transformers' operations, by the name of the
            first of those parameters, in the order of their names.
        target: The parameter, or the first of several, that a tensor goes to.
        pattern: For a tensor that is converted, which pattern of the conversion it matches.
        further: The other parameters that a conversion gives, where it splits tensors.
        extra: Tensors that belong to no parameter.
    """

    renamed: dict[str, str] = field(default_factory=dict)
    converted: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    target: dict[str, str] = field(default_factory=dict)
    pattern: dict[str, str] = field(default_factory=dict)
    further: set[str] = field(default_factory=set)
    extra: list[str] = field(default_factory=list)
    _converters: tuple[WeightConverter, ...] = ()

    @classmethod
    def of(cls, skeleton: Skeleton, tensors: Iterable[str]) -> Names:
        """Finds the parameter of every tensor.

        Args:
            skeleton: The model.
            tensors: Names of the checkpoint's tensors.
        """
        transforms = get_model_conversion_mapping(skeleton.model)
        renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        known = skeleton.model.state_dict()
        prefix = skeleton.model.base_model_prefix
        names = cls(_converters=tuple(converters))
        for tensor in sorted(tensors, key=dot_natural_key):
            key, pattern = rename_source_key(tensor, renamings, converters, prefix, known)
            if key not in known and tensor in known:
                key, pattern = tensor, None
            if key not in known:
                key, pattern = _of_expert(skeleton, key)
            if key not in known:
                names.extra.append(tensor)
                continue
            names.target[tensor] = key
            if pattern is None:
                names.renamed[key] = tensor
            else:
                names.converted[key].append(tensor)
                names.pattern[tensor] = pattern
                names.further |= names._further(key, pattern)
        return names

    def _further(self, key: str, pattern: str) -> set[str]:
        """The other parameters that a conversion gives of a tensor for one."""
        for converter in self._converters:
            if pattern in converter.source_patterns:
                first, *others = converter.target_patterns
                return {key.replace(first, other) for other in others}
        return set()

    def expert_parts(self, key: str) -> tuple[str, ...]:
        """The tensors that a parameter with all experts is made of, in the order of joining.

        Args:
            key: The parameter's name.

        Returns:
            One name where a tensor holds all experts, else one for each matrix of an expert with
            ``*`` in the place of its number. Empty where there is none.
        """
        if key in self.renamed:
            return (self.renamed[key],)
        by_pattern: dict[str, str] = {}
        for tensor in self.converted.get(key, ()):
            by_pattern[self.pattern[tensor]] = _EXPERT_NUMBER.sub(ANY_EXPERT, tensor, count=1)
        return tuple(by_pattern[pattern] for pattern in self._order(by_pattern))

    def _order(self, by_pattern: Mapping[str, str]) -> list[str]:
        """Patterns in the order in which the conversion names them."""
        for converter in self._converters:
            if set(by_pattern) <= set(converter.source_patterns):
                return [each for each in converter.source_patterns if each in by_pattern]
        return list(by_pattern)


def _of_expert(skeleton: Skeleton, name: str) -> tuple[str, str | None]:
    """The parameter with all experts that a matrix of one belongs to, and which part it is.

    Quantized checkpoints have experts one by one, also where a family's own have all in one tensor.
    """
    found = _OWN_MATRIX.fullmatch(name)
    if found is None:
        return name, None
    part = found["linear"]
    for parameter in (part, "gate_up_proj"):
        key = f"{found['module']}.{parameter}"
        block, _, module = found["module"].removeprefix(skeleton.prefix).partition(".")
        experts = skeleton.experts.get(int(block), {}) if block.isdecimal() else {}
        if module in experts and hasattr(experts[module], parameter):
            return key, part
    return name, None


def servable_names(
    skeleton: Skeleton, names: Names, tensors: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """The names that vLLM knows for tensors that are stored by others; empty where none are.

    A checkpoint that was saved from the base model names its tensors without ``model.``; one that
    was cut out of a larger model has something else in front; one that was saved as transformers
    has it in memory has all experts in one tensor where its family has one for each. transformers
    repairs the first and the last; vLLM repairs nothing.

    Args:
        skeleton: The model.
        names: Which tensor is which parameter.
        tensors: Names of the checkpoint's tensors.

    Returns:
        By stored name: the name, or those of equal parts that lie one after the other.
    """
    first = f"{skeleton.prefix}0."
    base = f"{skeleton.model.base_model_prefix}."
    if of_first := [name for name, key in names.target.items() if key.startswith(first)]:
        if not all((base + name).startswith(first) for name in of_first):
            return _as_saved(skeleton, names)
        return {
            name: (base + name,)
            for name, key in names.target.items()
            if key.startswith(base) and not name.startswith(base)
        }
    return {old: (new,) for old, new in _with_prefix(skeleton, tensors).items()}


def _as_saved(skeleton: Skeleton, names: Names) -> dict[str, tuple[str, ...]]:
    """The names of the family, by those in memory, for mixtures that are stored as in memory."""
    tensors = skeleton.model.state_dict()

    def saved(key: str) -> tuple[str, ...]:
        return tuple(
            sorted(revert_weight_conversion(skeleton.model, {key: tensors[key]}), key=_by_expert)
        )

    mixtures = []
    for index, modules in skeleton.experts.items():
        for module in modules:
            experts = f"{skeleton.prefix}{index}.{module}."
            down = f"{experts}down_proj"
            if names.renamed.get(down) == down and saved(down) != (down,):
                mixtures.append(experts.removesuffix("experts."))
    stored = [key for key, name in names.renamed.items() if key == name]
    found = {key: saved(key) for key in stored if key.startswith(tuple(mixtures))}
    return {key: new for key, new in found.items() if new != (key,)}


def _by_expert(name: str) -> int:
    """Sorts the parts of a tensor as they lie in it; those of an expert keep their order."""
    number = _EXPERT_NUMBER.search(name)
    return int(number[0]) if number else -1


def _with_prefix(skeleton: Skeleton, tensors: Collection[str]) -> dict[str, str]:
    """The same where something else stands in front than transformers knows."""
    _, _, first_block = f"{skeleton.prefix}0.".rpartition(".layers.")
    first_block = f"layers.{first_block}"
    root = skeleton.prefix.removesuffix("layers.")
    head = skeleton.head or "lm_head"
    prefixes = {name.partition(first_block)[0] for name in tensors if first_block in name}
    if len(prefixes) != 1:
        return {}
    (prefix,) = prefixes
    if prefix and not prefix.endswith("."):
        return {}
    renamed = {}
    for name in tensors:
        before, found, after = name.partition(f"{head}.")
        if found and after in ("weight", "bias") and prefix.startswith(before):
            new = found + after
        elif name.startswith(prefix):
            new = root + name.removeprefix(prefix)
        else:
            continue
        if new != name:
            renamed[name] = new
    # Nothing may land on a name that is taken.
    kept = set(tensors) - renamed.keys()
    if len(set(renamed.values())) < len(renamed) or not kept.isdisjoint(renamed.values()):
        return {}
    return renamed
