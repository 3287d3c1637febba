"""Families whose MLPs are mixtures of experts: names, shapes and layouts on disk."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.errors import InvalidInputError, Problem
from quantlib.models.base import LinearGroup, Producer
from quantlib.models.huggingface import BaseHuggingFaceAdapter

if TYPE_CHECKING:
    from quantlib.models.decoder import DecoderBlock
    from quantlib.models.streamed import StreamedModel

_FUSED_MLP = "mlp"
"""What transformers calls the MLP of every family since it stores experts in one tensor."""


@dataclass(frozen=True)
class Routing:
    """How tokens come to experts.

    Attributes:
        router: Name within the block of the linear that scores the experts.
        experts: How many there are.
        chosen: To how many of them a token goes.
        normalized: Whether the weights of a token's experts add up to 1.
    """

    router: str
    experts: int
    chosen: int
    normalized: bool


class MixtureAdapter(BaseHuggingFaceAdapter):
    """A decoder some of whose MLPs are mixtures of experts.

    A checkpoint holds two matrices for each expert and one that leads back, or all experts in two
    tensors: ``mlp.experts.gate_up_proj`` ``[experts, 2 * intermediate, hidden]`` and
    ``mlp.experts.down_proj`` ``[experts, hidden, intermediate]``, which transformers 5 keeps in
    memory. Both are read as the former, and that is what is written: it is what vLLM reads when
    experts are quantized.

    Attributes:
        mlp: Name of a mixture within its block.
        gate: Name of an expert's gate within the expert.
        up: The same of what is gated.
        down: The same of what leads back to the residual stream.
        experts_fields: The fields of the config that may hold the number of experts.
        intermediate_field: The field with the channels within an expert.
    """

    mlp: ClassVar[str] = "mlp"
    gate: ClassVar[str] = "gate_proj"
    up: ClassVar[str] = "up_proj"
    down: ClassVar[str] = "down_proj"
    experts_fields: ClassVar[tuple[str, ...]] = ("num_local_experts",)
    intermediate_field: ClassVar[str] = "intermediate_size"

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Checks the config.

        Raises:
            InvalidInputError: A field is missing, or asks for what is not supported.
        """
        problems = self._mixture_problems(config)
        try:
            super().__init__(config)
        except InvalidInputError as error:
            problems = [*error.problems, *problems]
        if problems:
            raise InvalidInputError(problems)

    def _mixture_problems(self, config: Mapping[str, Any]) -> list[Problem]:
        experts = self._experts(config)
        given = {" or ".join(self.experts_fields): experts}
        given |= {
            field: config.get(field) for field in (self.intermediate_field, "num_experts_per_tok")
        }
        problems = [
            Problem(f"config.json: {field}", "is missing or no positive whole number")
            for field, value in given.items()
            if not isinstance(value, int) or value < 1
        ]
        if not problems and config["num_experts_per_tok"] > experts:
            problems.append(
                Problem("config.json: num_experts_per_tok", f"is more than the {experts} experts")
            )
        return problems

    def _experts(self, config: Mapping[str, Any]) -> Any:
        return next((config[field] for field in self.experts_fields if field in config), None)

    @abstractmethod
    def is_mixture(self, block: int) -> bool:
        """Whether a block's MLP is a mixture of experts."""

    @property
    def normalized(self) -> bool:
        """Whether the weights of a token's experts add up to 1."""
        return True

    @property
    def routing(self) -> Routing:
        """How tokens come to experts."""
        return Routing(
            router=f"{self.mlp}.gate",
            experts=self._experts(self.config),
            chosen=self.config["num_experts_per_tok"],
            normalized=self.normalized,
        )

    def _expert(self, expert: int, linear: str) -> str:
        return f"{self.mlp}.experts.{expert}.{linear}"

    def format_problem(self, format_name: str, exact: Sequence[Collection[str]]) -> str | None:
        """Why vLLM cannot read the family in a format that it reads otherwise; None where it can.

        Where its first choice of kernels does not take the hidden size, vLLM (moe_wna16.py) forgets
        what the gptq format says of modules that stay exact.
        """
        hidden = self.config["hidden_size"]
        if format_name != "gptq" or hidden % 128 == 0:
            return None
        exact_experts = [
            block
            for block, linears in enumerate(exact)
            for group in self.groups(block)
            if group.expert is not None and set(group.linears) <= set(linears)
        ]
        if not exact_experts:
            return None
        return (
            f"vLLM takes exact experts (block {exact_experts[0]}) for quantized ones where the "
            f"hidden size, {hidden}, is no multiple of 128"
        )

    def groups(self, block: int) -> tuple[LinearGroup, ...]:
        """The linears of a block, in the order in which their inputs arise.

        The norm before a mixture feeds the router too, so that nothing can be folded into it.
        """
        groups = super().groups(block)
        if not self.is_mixture(block):
            return groups
        return groups[:2] + tuple(
            group
            for expert in range(self.routing.experts)
            for group in (
                LinearGroup(
                    f"expert_{expert}_input",
                    (self._expert(expert, self.gate), self._expert(expert, self.up)),
                    expert=expert,
                ),
                LinearGroup(
                    f"expert_{expert}_output",
                    (self._expert(expert, self.down),),
                    Producer(self._expert(expert, self.up)),
                    expert=expert,
                ),
            )
        )

    def fused(self, block: int) -> Mapping[str, tuple[str, ...]]:
        """The linears that vLLM fuses, by the name that it gives the fused one or all of them."""
        if not self.is_mixture(block):
            return super().fused(block)
        attention, _, *experts = self.groups(block)
        return {
            "self_attn.qkv_proj": attention.linears,
            f"{self.mlp}.experts": tuple(name for group in experts for name in group.linears),
        }

    def routers(self, block: int) -> tuple[str, ...]:
        """Names of a block's linears that choose experts; they are never quantized."""
        return (self.routing.router,) if self.is_mixture(block) else ()

    def block_shapes(self, block: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors that a block has to have, by name within the block."""
        shapes = super().block_shapes(block)
        if not self.is_mixture(block):
            return shapes
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("mlp.")}
        hidden, intermediate = self.config["hidden_size"], self.config[self.intermediate_field]
        shapes[f"{self.routing.router}.weight"] = (self.routing.experts, hidden)
        for expert in range(self.routing.experts):
            for name in (self.gate, self.up):
                shapes[f"{self._expert(expert, name)}.weight"] = (intermediate, hidden)
            shapes[f"{self._expert(expert, self.down)}.weight"] = (hidden, intermediate)
        return shapes

    def _stacked_shapes(self, block: int) -> dict[str, tuple[int, int, int]]:
        """The tensors with all experts of a mixture, by their full names."""
        if not self.is_mixture(block):
            return {}
        experts = self.routing.experts
        hidden, intermediate = self.config["hidden_size"], self.config[self.intermediate_field]
        prefix = f"{self.block_prefix(block)}{_FUSED_MLP}.experts."
        return {
            f"{prefix}gate_up_proj": (experts, 2 * intermediate, hidden),
            f"{prefix}down_proj": (experts, hidden, intermediate),
        }

    def arranged(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with a matrix for each linear of each expert."""
        parts: dict[str, tuple[TensorInfo, ...]] = {}
        for block in range(self.blocks):
            prefix = self.block_prefix(block)
            for name, shape in self._stacked_shapes(block).items():
                info = checkpoint.tensors.get(name)
                if info is not None and info.shape == shape:
                    parts[name] = tuple(self._matrices(prefix, info))
            router = f"{prefix}{_FUSED_MLP}.gate.weight"
            if self.is_mixture(block) and router in checkpoint.tensors:
                name = f"{prefix}{self.routing.router}.weight"
                parts[router] = (replace(checkpoint.tensors[router], name=name),)
        tensors = {
            (part.name if name in parts else name): part
            for name, info in checkpoint.tensors.items()
            for part in parts.get(name, (info,))
        }
        return replace(checkpoint, tensors=tensors)

    def _matrices(self, prefix: str, info: TensorInfo) -> Iterator[TensorInfo]:
        """The matrices of a tensor with all experts, which lie there one behind the other."""
        experts, rows, columns = info.shape
        names = (self.down,) if info.name.endswith("down_proj") else (self.gate, self.up)
        shape = (rows // len(names), columns)
        places = [(expert, name) for expert in range(experts) for name in names]
        for at, (expert, name) in enumerate(places):
            full = f"{prefix}{self._expert(expert, name)}.weight"
            yield info.part(full, at * shape[0] * shape[1], shape)

    def _tensor_problems(self, checkpoint: Checkpoint) -> dict[str, list[Problem]]:
        """What is ``missing``, ``misshapen`` and ``unknown``, tensor by tensor."""
        found = super()._tensor_problems(checkpoint)
        stacked = []
        for block in range(self.blocks):
            for name, shape in self._stacked_shapes(block).items():
                if name not in checkpoint.tensors:
                    continue
                given = list(checkpoint.info(name).shape)
                what = f"has shape {given}; the config says {list(shape)}"
                # What it should hold is not missing besides, nor is it unknown.
                experts = f"{self.block_prefix(block)}{self.mlp}.experts."
                for kind, problems in found.items():
                    found[kind] = [
                        problem
                        for problem in problems
                        if not problem.where.startswith(experts) and problem.where != name
                    ]
                stacked.append(Problem(name, what))
        found["misshapen"] += stacked
        return found

    def build_block(self, model: StreamedModel, block: int) -> DecoderBlock:
        """Reads one block, all its experts included, and makes it computable."""
        from quantlib.models.moe import MixtureBlock

        built = super().build_block(model, block)
        return MixtureBlock.of(built, self.routing) if self.is_mixture(block) else built
