"""What cannot fit: a GPU's memory, a node's GPUs, a step's disk. And what would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checks.scheme import needs_hidden_states, scheme_problems
from quantlib.errors import Problem
from quantlib.models import BaseModelAdapter
from quantlib.planning.estimate import RunEstimate
from quantlib.planning.hardware import GIB, HARDWARE, Hardware
from quantlib.planning.model import model_sizes
from quantlib.planning.needs import NODE_GPUS, StepNeeds, step_needs, vllm_fits
from quantlib.quantizers import quantizer_registry
from quantlib.recipe import Recipe

_PRODUCT_BYTES = 2
"""Of a number in matrix products on a GPU."""


_SERVING = ("validate", "tasks")
"""Steps in which vLLM holds a model."""


@dataclass(frozen=True)
class Limits:
    """What there is of what cannot be made more of.

    Attributes:
        node_gpus: GPUs of one node.
        scratch_bytes: Local disk of a step; None where it is not known to be limited.
    """

    node_gpus: int = NODE_GPUS
    scratch_bytes: int | None = None


def fit_problems(
    recipe: Recipe,
    checkpoint: Checkpoint,
    adapter: BaseModelAdapter,
    estimate: RunEstimate,
    limits: Limits,
) -> list[Problem]:
    """Which steps do not fit what they are to run on, with what would work.

    Args:
        recipe: What to do.
        checkpoint: The model.
        adapter: The model's family.
        estimate: What the steps need.
        limits: What there is.
    """
    search = _Search(recipe, checkpoint, adapter, limits, estimate.images)
    problems: list[Problem] = []
    if estimate.hardware.is_gpu:
        problems += search.node_problems()
        for step, needs in estimate.needs.items():
            if step == "tasks" and needs == estimate.needs["validate"]:
                continue  # what is said of that holds for it
            if not _fits(step, needs, estimate.hardware):
                problems.append(search.memory_problem(step, needs, estimate.hardware))
    if limits.scratch_bytes is not None and estimate.scratch_bytes > limits.scratch_bytes:
        wanted = -(-estimate.scratch_bytes // GIB)
        problems.append(
            Problem(
                "scratch.size",
                f"validate needs {wanted} GiB of local disk for {search.on_disk(estimate)}, and "
                "the profile gives "
                f"{_gib(limits.scratch_bytes)}",
                f"give {wanted}Gi, by a storage class if the nodes' disks are smaller",
            )
        )
    return problems


def parse_quantity(text: str) -> int:
    """Bytes of a quantity of Kubernetes: ``400Gi``.

    Raises:
        ValueError: It is none.
    """
    units = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    units |= {f"{unit}i": 1 << 10 * power for power, unit in enumerate("KMGT", 1)}
    number = text.rstrip("kKMGTim")
    return int(float(number) * units[text.removeprefix(number)])


def _fits(step: str, needs: StepNeeds, hardware: Hardware) -> bool:
    if not needs.gpus:
        return True
    if step in _SERVING:
        return vllm_fits(needs.memory, hardware)
    return needs.memory.device <= hardware.memory


class _Search:
    """Looks for changes with which a step fits."""

    def __init__(
        self,
        recipe: Recipe,
        checkpoint: Checkpoint,
        adapter: BaseModelAdapter,
        limits: Limits,
        images: bool,
    ) -> None:
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.adapter = adapter
        self.limits = limits
        self.images = images
        self.sizes = model_sizes(recipe, checkpoint, adapter, images=images)

    def on_disk(self, estimate: RunEstimate) -> str:
        """What of the models lies on validate's disk, in words."""
        quantized = f"the quantized model ({_gib(self.sizes.quantized_bytes)})"
        if estimate.needs["validate"].streams:
            return quantized
        return f"the original ({_gib(self.sizes.total_bytes)}) and {quantized}"

    def node_problems(self) -> Iterator[Problem]:
        """That more GPUs are to serve the model than one node has, where it is judged."""
        wanted, there = self.recipe.serving.tensor_parallel_size, self.limits.node_gpus
        if wanted > there:
            yield Problem(
                "serving.tensor_parallel_size",
                f"is {wanted}, and validate judges the model on one node, which has {there} GPUs",
                f"give at most {there}, or nodes with {wanted}",
            )

    def memory_problem(self, step: str, needs: StepNeeds, hardware: Hardware) -> Problem:
        """That a step does not fit a GPU's memory."""
        remedies = list(
            self._larger_node(step, hardware)
            if step in _SERVING
            else self._smaller_need(step, hardware)
        )
        each = "of GPU memory"
        if needs.gpus > 1 or step in _SERVING:
            each = f"on each of {needs.gpus} GPUs" if needs.gpus > 1 else "on one GPU"
        usable = ""
        if step in _SERVING:
            usable = f", of which vLLM takes {_gib(int(0.9 * hardware.memory))}"
        return Problem(
            f"{step} on {hardware.name}",
            f"needs {_gib(needs.memory.device)} {each}, and there are {_gib(hardware.memory)}"
            + usable
            + self._reason(step, needs),
            "what would work: " + "; or ".join(remedies)
            if remedies
            else "nothing that is known here would make it fit",
        )

    def _reason(self, step: str, needs: StepNeeds) -> str:
        if step in _SERVING:
            if needs.streams:
                return f"; those of the quantized model are {_gib(self.sizes.quantized_bytes)}"
            return f"; the original's weights are {_gib(self.sizes.total_bytes)}"
        group = max(self.sizes.groups, key=lambda group: group.columns, default=None)
        if step != "quantize" or group is None or not needs_hidden_states(self.recipe.quantization):
            return ""
        hessians = _gib(8 * 4 * group.columns**2)
        return f"; {hessians} are for the Hessians of {group.name} ({group.columns} inputs)"

    def _needs(
        self, step: str, hardware: Hardware, recipe: Recipe | None = None, node_gpus: int = 0
    ) -> StepNeeds:
        sizes = self.sizes
        if recipe is not None:
            sizes = model_sizes(recipe, self.checkpoint, self.adapter, images=self.images)
        return step_needs(
            recipe or self.recipe,
            sizes,
            self.adapter,
            hardware,
            _PRODUCT_BYTES,
            node_gpus or self.limits.node_gpus,
        )[step]

    def _works(self, step: str, hardware: Hardware, recipe: Recipe) -> bool:
        return _fits(step, self._needs(step, hardware, recipe), hardware)

    def _larger_node(self, step: str, hardware: Hardware) -> Iterator[str]:
        for other in _gpus():
            needs = self._needs(step, other)
            if _fits(step, needs, other):
                yield f"{needs.gpus} of {other.name} in one node"
                break
        if self.limits.node_gpus < NODE_GPUS:
            needs = self._needs(step, hardware, node_gpus=NODE_GPUS)
            if _fits(step, needs, hardware):
                yield f"nodes with {needs.gpus} of {hardware.name}"

    def _smaller_need(self, step: str, hardware: Hardware) -> Iterator[str]:
        for other in _gpus():
            if _fits(step, self._needs(step, other), other):
                yield f"a GPU with {_gib(other.memory)} ({other.name})"
                break
        for found in (self._with_exact, self._with_fewer_tokens, self._with_another_method):
            if words := found(step, hardware):
                yield words

    def _with_exact(self, step: str, hardware: Hardware) -> str:
        """Leaving the linears exact whose input is widest."""
        if step != "quantize" or not self.sizes.groups:
            return ""
        group = max(self.sizes.groups, key=lambda group: group.columns)
        names = [name.rpartition(".")[2] for name in group.linears]
        ignore = [*self.recipe.quantization.ignore, *dict.fromkeys(names)]
        recipe = _changed(self.recipe, "quantization", ignore=tuple(ignore))
        if not self._works(step, hardware, recipe):
            return ""
        return (
            f"leaving {group.name} exact (quantization.ignore: [{', '.join(dict.fromkeys(names))}])"
        )

    def _with_fewer_tokens(self, step: str, hardware: Hardware) -> str:
        """The most samples that fit, where the number of samples is what makes the difference."""

        def works(samples: int) -> bool:
            recipe = _changed(self.recipe, "calibration", num_samples=samples)
            return self._works(step, hardware, recipe)

        most = _largest(works, self.recipe.calibration.num_samples)
        length = self.recipe.calibration.sequence_length
        # A handful of samples says too little of a model to be called a remedy.
        if most < 16:
            return ""
        return f"calibrating on {most * length} tokens (calibration.num_samples: {most})"

    def _with_another_method(self, step: str, hardware: Hardware) -> str:
        """Methods that hold no Hessians and take the same scheme."""
        section = self.recipe.quantization
        fitting = []
        for method in quantizer_registry:
            changed = _changed(self.recipe, "quantization", method=method, options={})
            if method == section.method or scheme_problems(changed):
                continue
            if needs_hidden_states(changed.quantization):
                continue
            if self._works(step, hardware, changed):
                fitting.append(method)
        return f"a method without calibration ({', '.join(fitting)})" if fitting else ""


def _gpus() -> list[Hardware]:
    return sorted((each for each in HARDWARE.values() if each.is_gpu), key=lambda one: one.memory)


def _largest(works: Callable[[int], bool], below: int) -> int:
    """The largest number under ``below`` that works, if smaller ones do too; 0 if none does."""
    good, bad = 0, below
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if works(middle) else (good, middle)
    return good


def _changed(recipe: Recipe, section: str, **changes: object) -> Recipe:
    part = getattr(recipe, section).model_copy(update=changes)
    return recipe.model_copy(update={section: part})


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
